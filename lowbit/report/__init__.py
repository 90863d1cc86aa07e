"""Turns a results directory into one self-contained HTML file and its plots into SVG and PNG."""
