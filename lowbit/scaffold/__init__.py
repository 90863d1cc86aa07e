"""The scaffold: a new plugin's package, rendered from the template that lies beside this file."""

from lowbit.scaffold.names import PluginNames, plugin_names
from lowbit.scaffold.render import TEMPLATE, render_plugin

__all__ = ["TEMPLATE", "PluginNames", "plugin_names", "render_plugin"]
