from pathlib import Path

import pytest

from reparam.errors import CheckpointError
from reparam.journal import Journal
from reparam.survey.records import Examination
from tests.survey.stand_ins import examination


def test_what_was_added_is_read_again_and_a_later_line_replaces_an_earlier(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new" / "j.jsonl", Examination, fresh=False)
    assert journal.read() == {}
    first, second = examination("a", error="once"), examination("a")
    for record in (first, examination("b"), second):
        journal.add(record)
    assert Journal(tmp_path / "new" / "j.jsonl", Examination, fresh=False).read() == {
        "a": second,
        "b": examination("b"),
    }


def test_a_torn_last_line_is_cut_off_and_the_journal_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    journal = Journal(path, Examination, fresh=False)
    journal.add(examination("a"))
    path.write_bytes(path.read_bytes() + b'{"name": "b", "fam')
    assert set(journal.read()) == {"a"}
    journal.add(examination("c"))
    assert set(journal.read()) == {"a", "c"}


def test_fresh_forgets(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    Journal(path, Examination, fresh=False).add(examination("a"))
    assert Journal(path, Examination, fresh=True).read() == {}


def test_a_whole_line_that_is_no_record_is_refused_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    journal = Journal(path, Examination, fresh=False)
    journal.add(examination("a"))
    path.write_bytes(path.read_bytes() + b'{"name": "b"}\n')
    with pytest.raises(CheckpointError, match=r"j.jsonl, line 2: .*--fresh"):
        journal.read()
