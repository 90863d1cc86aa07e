"""What a repository tells those who come to it holds together with the project."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
FORMS = sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_licence_is_the_whole_of_apache_2() -> None:
    text = (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    assert text.split()[:6] == ["Apache", "License", "Version", "2.0,", "January", "2004"]
    assert "END OF TERMS AND CONDITIONS" in text
    assert len(text.split()) == 1581


def test_citation_and_package_name_the_same_version_and_licence() -> None:
    citation = read_yaml(REPOSITORY / "CITATION.cff")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == "Apache-2.0"
    assert citation["authors"] == [{"name": "The lowbit contributors"}]


def test_the_workflow_runs_what_a_contributor_runs() -> None:
    jobs = read_yaml(REPOSITORY / ".github" / "workflows" / "ci.yml")["jobs"]
    assert [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step] == [".ci/run"]
    assert (REPOSITORY / ".ci" / "run").is_file()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_an_issue_form_asks_for_what_answers_need(form: Path) -> None:
    content = read_yaml(form)
    assert {"name", "description", "body"} <= content.keys()
    identities = [part["id"] for part in content["body"]]
    assert len(identities) == len(set(identities))
    assert any(part.get("validations", {}).get("required") for part in content["body"])


def test_pre_commit_checks_what_ci_checks() -> None:
    [repository] = read_yaml(REPOSITORY / ".pre-commit-config.yaml")["repos"]
    entries = {hook["entry"].split(" --")[0] for hook in repository["hooks"]}
    assert entries == {"ruff format", "ruff check", "mypy"}
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    assert all(entry in script for entry in entries)


def test_the_changelog_has_the_version_of_the_package() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in text
    assert project["version"] in text
