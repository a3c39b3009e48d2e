"""Readers of one dataset's own form: what they leave out, and what they put together."""

from __future__ import annotations

import bz2
from pathlib import Path

import pytest

from lowrank.cards import data_card
from lowrank.data.readers import read
from lowrank.data.splits import split_rows
from lowrank.spec import DataSpec
from tests.card_files import PreparedFiles


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedFiles:
    return PreparedFiles(tmp_path, monkeypatch)


def test_film_reviews_are_critics_snippets_once_each(bench: PreparedFiles) -> None:
    lines = ["category,text,movie_name,has_plot_and_reviews", "plot,A story.,one,True", "fresh,,one,True"]
    lines += [f"{'fresh' if i % 2 else 'rotten'},Snippet w{i} w{i + 1} {i},film {i // 3},True" for i in range(30)]
    source = bench.local("films", {"films.csv.bz2": ""})
    told = "\n".join([*lines, lines[-1]]) + "\n"
    (Path(source["path"]) / "films.csv.bz2").write_bytes(bz2.compress(told.encode()))
    fields = {"reader": "film_reviews", "label": "category", "labels": ["rotten", "fresh"], "group": "movie_name"}
    bench.prepare(card={**fields, "source": source})
    rows = read(data_card("rows"), Path(source["path"]))
    assert len(rows) == 30
    assert {row.group for row in rows} == {f"film {i}" for i in range(10)}
    splits = split_rows(rows, DataSpec(card="rows"))
    homes = {name: {row.group for row in split} for name, split in splits.items()}
    assert sum(map(len, homes.values())) == 10, "a film's reviews stand in one split"


def test_wikitext_lines_become_articles(bench: PreparedFiles) -> None:
    import pyarrow
    from pyarrow import parquet

    lines = ["", " = One = \n", "", " = = A section = = \n", " w1 w2 . \n", " = Two = \n", " w3 = 4 \n"]
    source = bench.local("wiki", {"wiki.parquet": ""})
    parquet.write_table(pyarrow.Table.from_pylist([{"text": line} for line in lines]), f"{source['path']}/wiki.parquet")
    card = bench.data("articles", [], task="text", labels=[], reader="wikitext", source=source)
    found = [row.text for row in read(card, Path(source["path"]))]
    assert found == [" = One = \n = = A section = = \n w1 w2 . \n", " = Two = \n w3 = 4 \n"]
