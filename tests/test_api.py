"""`import lowrank` on a model of one's own: spellings of a method, saving and loading, refusals, docs/use.md."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import lowrank
from lowrank.errors import ConfigError
from lowrank.methods.adapted import adapted
from tests.chain_runs import logits, train
from tests.tiny_models import batch, make
from tests.tolerances import BIT_EXACT, MERGE

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

USE = Path(__file__).parents[1] / "docs" / "use.md"
LORA: dict[str, Any] = {"part": "lora", "rank": 4, "targets": ["q_lin"]}


def refused(*args: Any, family: str = "distilbert", **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        lowrank.attach(make(family), *args, **options)
    return str(caught.value)


class TestImport:
    def test_is_light(self) -> None:
        code = (
            "import sys, lowrank; lowrank.__version__; dir(lowrank); "
            "print(sorted({name.split('.')[0] for name in sys.modules} & "
            "{'torch', 'transformers', 'pydantic', 'numpy', 'yaml', 'safetensors', 'bitsandbytes'}))"
        )
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert ran.stdout.strip() == "[]"

    def test_everything_promised_is_there(self) -> None:
        for name in lowrank.__all__:
            assert getattr(lowrank, name).__doc__
            assert name in dir(lowrank)

    def test_anything_else_is_not(self) -> None:
        with pytest.raises(AttributeError, match="no attribute 'atach'"):
            _ = lowrank.atach  # type: ignore[attr-defined]


class TestSpellings:
    def test_options_go_to_the_part_that_has_them(self) -> None:
        chain = lowrank.attach(make("llama"), "lora+velora", rank=4, num_groups=8, alpha=8)
        lora, velora = (part.options for part in chain.parts)
        assert (lora.rank, lora.alpha, velora.num_groups) == (4, 8, (8,))

    def test_all_spellings_are_one_method(self) -> None:
        rows = batch("distilbert", 4)
        ways: list[tuple[Any, dict[str, Any]]] = [
            ("lora", {"rank": 4, "targets": ["q_lin"]}),
            (LORA, {}),
            ([LORA], {}),
            (["lora"], {"rank": 4, "targets": "q_lin"}),
            ([{"part": "lora", "rank": 4}], {"targets": ["q_lin"]}),
        ]
        found = []
        for method, options in ways:
            model = make("distilbert").float()
            chain = lowrank.attach(model, method, seed=3, **options)
            optimizer = torch.optim.AdamW(lowrank.trainable_parameters(model), lr=1e-2)
            train(model, chain, optimizer, [rows, rows])
            found.append(logits(chain, rows))
        for other in found[1:]:
            BIT_EXACT.check(other, found[0])

    def test_an_entry_of_the_caller_is_left_as_it_was(self) -> None:
        entry = {"part": "lora", "rank": 4}
        lowrank.attach(make("distilbert"), [entry], targets=["q_lin"])
        assert entry == {"part": "lora", "rank": 4}

    def test_options_named_as_arguments_are(self) -> None:
        chain = lowrank.attach(make("bert"), "lora+prune", rank=4, start=1, method="topk")
        assert chain["prune"].options.method == "topk"

    def test_the_seed_decides_the_draws(self) -> None:
        first, same, other = (lowrank.attach(make("bert"), "lora", seed=seed).changed() for seed in (1, 1, 2))
        name = next(name for name in first if name.endswith("lora_A"))
        assert torch.equal(first[name], same[name])
        assert not torch.equal(first[name], other[name])

    @pytest.mark.parametrize(
        ("method", "options", "words"),
        [
            ("lorra", {}, "unknown part 'lorra'; did you mean 'lora'?"),
            ("lora", {"rnk": 8}, "lora: unknown option 'rnk'; did you mean 'rank'? (allowed: alpha"),
            ("nf4+lora", {"targets": ["q_lin"]}, "option 'targets' belongs to nf4 and lora; say whose it is, as in"),
            ("lora", {"rank": 0}, "lora: rank: 0 is out of range, allowed: > 0"),
            (
                "lora",
                {"rank": 17},
                "rank 17 is too large for 'distilbert.transformer.layer.0.attention.q_lin'; allowed",
            ),
            ("lora", {"targets": ["q_proj"]}, "target 'q_proj' matches no module of DistilBert"),
            ([{"part": "lora", "rank": 4}], {"rank": 8}, "option 'rank' of lora is given twice: 4 and 8"),
            ([{"rank": 4}], {}, "names its part"),
            ([], {}, "names at least one part"),
            ([7], {}, "found 7"),
            ("prune", {}, "prune: start: missing, and it has no default"),
            ([{"part": "lora", "rnk": 8}], {}, "lora: rnk: unknown key 'rnk'; did you mean 'rank'?"),
        ],
    )
    def test_wrong_use_is_refused(self, method: Any, options: dict[str, Any], words: str) -> None:
        assert words in refused(method, **options)


class TestModel:
    def test_merging_and_taking_out_again(self) -> None:
        model, rows = make("distilbert").float(), batch("distilbert", 4)
        chain = lowrank.attach(model, LORA)
        train(model, chain, torch.optim.AdamW(lowrank.trainable_parameters(model), lr=1e-2), [rows, rows])
        seen = logits(chain, rows)
        assert lowrank.merge(model) is model
        assert not list(adapted(model))
        MERGE.check(model(**rows).logits, seen)
        assert lowrank.unmerge(model) is model
        assert len(list(adapted(model))) == 2
        MERGE.check(logits(chain, rows), seen)

    @pytest.mark.parametrize("use", [lowrank.merge, lowrank.unmerge, lowrank.trainable_parameters])
    def test_nothing_is_attached(self, use: Any) -> None:
        with pytest.raises(ConfigError, match=r"BertForSequenceClassification: no method is attached; call lowrank\."):
            use(make("bert"))

    def test_twice(self) -> None:
        model = make("bert")
        lowrank.attach(model, "lora")
        with pytest.raises(ConfigError, match="merge it first"):
            lowrank.attach(model, "lora")
        with pytest.raises(ConfigError, match="not merged"):
            lowrank.unmerge(model)
        lowrank.merge(model)
        with pytest.raises(ConfigError, match="merged already"):
            lowrank.merge(model)
        lowrank.attach(model, "lora")


def seven_billion() -> nn.Module:
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32000,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


@pytest.mark.parametrize("method", ["lora", "nf4+lora", "full+velora"])
def test_attaching_to_seven_billion_parameters_is_quick(method: str) -> None:
    model = seven_billion()
    began = time.process_time()
    chain = lowrank.attach(model, method)
    assert time.process_time() - began < 10, "about 1 s on an idle core"
    targets = 32 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    assert sum(p.numel() for p in chain.trainable().values()) in (8 * targets, 6_738_415_616)


def test_the_page_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", USE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5

    def make_model() -> nn.Module:
        return make("llama").float()

    names: dict[str, Any] = {
        "make_model": make_model,
        "model": make_model(),
        "batches": [batch("llama", 4, seed) for seed in range(4)],
    }
    for number, block in enumerate(blocks):
        exec(compile(block, f"{USE.name}, block {number + 1}", "exec"), names)
    told = re.search(r"# (lora: rank .*) \.\.\.$", USE.read_text(), re.MULTILINE)
    assert told
    assert told[1] in capsys.readouterr().out
    assert not list(adapted(names["plain"]))
    assert names["schedule"] is None
    assert type(names["again"]) is type(names["model"])
    assert names["loss"].isfinite()
