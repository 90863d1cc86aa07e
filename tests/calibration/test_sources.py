from __future__ import annotations

from pathlib import Path

import pytest

from lowbit.calibration.sources import C4, PennTreebank, WikiText2
from lowbit.contracts import CalibrationSource, DataAccess
from lowbit.errors import LowbitError


def write_mirror(root: Path, source: type[WikiText2] | type[C4] | type[PennTreebank]) -> None:
    folder = root / source.path / source.configuration
    folder.mkdir(parents=True)
    for split in ("train", "test", "validation"):
        rows = "".join(f'{{"{source.column}": "{split} document {n}"}}\n' for n in range(3))
        (folder / f"{split}.jsonl").write_text(rows)


@pytest.mark.parametrize("source", [WikiText2, C4, PennTreebank])
def test_a_source_reads_the_training_split_of_the_mirror_only(
    tmp_path: Path, source: type[WikiText2] | type[C4] | type[PennTreebank]
) -> None:
    write_mirror(tmp_path, source)
    found = list(source().documents(DataAccess(tmp_path)))
    assert found == [f"train document {n}" for n in range(3)]


def test_an_absent_data_set_names_itself_and_the_folder(tmp_path: Path) -> None:
    source: CalibrationSource = C4()
    with pytest.raises(LowbitError, match="allenai/c4"):
        list(source.documents(DataAccess(tmp_path)))


def test_the_real_training_split_of_wikitext2_is_read(mirror: Path) -> None:
    documents = list(WikiText2().documents(DataAccess(mirror)))
    assert sum(map(len, documents)) > 900_000
    assert " = Valkyria Chronicles III = " in documents[0]
