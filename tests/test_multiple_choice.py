"""Multiple choice through lm-eval: its prompts, its likelihoods, our answers, its weighting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from lowrank.cards import data_card
from lowrank.data.loader import open_splits
from lowrank.data.mmlu import examples
from lowrank.errors import ConfigError, IntegrityError
from lowrank.evaluate import harness
from lowrank.evaluate.harness import ChainLM, Questions, ask
from lowrank.evaluate.protocol import Subject
from lowrank.evaluate.protocols.multiple_choice import MultipleChoice, wilson
from lowrank.methods.chain import Chain
from lowrank.models.load import load_model
from lowrank.spec import DataSpec, EvalSpec, ModelSpec, RunSpec
from tests.training_lab import prepared

CPU = torch.device("cpu")
ASKED = DataSpec(card="smoke_questions", max_length=96, test_rows=12, train_rows=20)
RUN = RunSpec.model_validate(
    {
        "task": "causal_lm",
        "model": {"card": "smoke_llama"},
        "data": ASKED.model_dump(),
        "chain": "full",
        "train": {"lr": 1e-3, "steps": 0},
    }
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("questions"))
        yield prepared(RUN).resolve(), load_model(ModelSpec(card="smoke_llama"), "causal_lm", 0, 0)


def question(subject: str, answer: int, number: int = 0) -> dict[str, Any]:
    return {"question": f"Q{number}?", "choices": [*"wxyz"], "answer": answer, "subject": subject}


class Constant(nn.Module):
    """Gives each token its own score, wherever it stands."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, input_ids: Tensor, **_: Tensor) -> Any:
        return type("Output", (), {"logits": self.scores.expand(*input_ids.shape, -1)})


def lm(folder: Path, model: nn.Module | None = None, length: int = 96, size: int = 4) -> ChainLM:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if model is None:
        model = Constant(torch.arange(tokenizer.get_vocab_size(), dtype=torch.float32))
    return ChainLM(model, tokenizer, length, size, CPU, lambda: None)


def test_a_prompt_is_mmlus(folder: Any) -> None:
    asked, shown = [question("high_school_physics", 2, 7)], [question("high_school_physics", 1, n) for n in range(3)]
    task = Questions("high_school_physics", asked, shown, 2, lambda text: True)
    ask(lm(folder[0]), [task])
    examples = "".join(f"Q{n}?\nA. w\nB. x\nC. y\nD. z\nAnswer: B\n\n" for n in range(2))
    head = "The following are multiple choice questions (with answers) about high school physics.\n\n"
    requests = [instance.args for instance in task.instances]
    assert requests == [(f"{head}{examples}Q7?\nA. w\nB. x\nC. y\nD. z\nAnswer:", f" {letter}") for letter in "ABCD"]


def test_the_likeliest_letter_answers(folder: Any) -> None:
    rows = [question("a", answer, answer) for answer in range(4)] + [question("b", 3, 9)]
    found = ask(lm(folder[0]), [Questions(s, [r for r in rows if r["subject"] == s], [], 0, bool) for s in "ab"])
    tokenizer = Tokenizer.from_file(str(folder[0] / "tokenizer.json"))
    likeliest = max(range(4), key=lambda index: tokenizer.token_to_id("abcd"[index]) or -1)
    assert found == {"a": [float(answer == likeliest) for answer in range(4)], "b": [float(likeliest == 3)]}


def test_likelihoods_are_those_of_the_harness_own_model(folder: Any) -> None:
    """The same requests through lm-eval's class for Hugging Face models."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast

    path, model = folder
    fast = PreTrainedTokenizerFast(tokenizer_object=lm(path).tokenizer, pad_token="[PAD]", eos_token="[SEP]")
    theirs = HFLM(pretrained=model, tokenizer=fast, backend="causal", max_length=40, batch_size=2)
    texts = [
        ("Amsterdam is a city", " in the Netherlands"),
        ("A volcano", " B"),
        ("A volcano", " C"),
        ("w " * 90, " D"),
    ]
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i, metadata=("t", 0, 1))
        for i, pair in enumerate(texts)
    ]
    ours = lm(path, model, length=40, size=2)
    ours.tok_encode = theirs.tok_encode  # BERT's tokenizer closes texts, which only ours takes off
    for (our_value, our_greedy), (value, greedy) in zip(
        ours.loglikelihood(requests), theirs.loglikelihood(requests), strict=True
    ):
        assert our_value == pytest.approx(value, rel=1e-5)
        assert our_greedy == greedy


@pytest.mark.parametrize("size", [1, 3, 64])
def test_batches_do_not_change_an_answer(folder: Any, size: int) -> None:
    path, model = folder
    requests = [(("", ""), [5 + i] * (3 + i), [7, 9]) for i in range(5)]
    torch.testing.assert_close(
        [value for value, _ in lm(path, model, size=size)._loglikelihood_tokens(requests)],
        [lm(path, model, size=1)._loglikelihood_tokens([request])[0][0] for request in requests],
        rtol=1e-5,
        atol=1e-5,
    )


def test_examples_that_do_not_fit_are_left_out(folder: Any) -> None:
    asked, shown = [question("a", 0, 9)], [question("a", 1, n) for n in range(5)]
    task = Questions("a", asked, shown, 5, lambda text: text.count("Answer:") <= 3)
    ask(lm(folder[0]), [task])
    assert task.shown == [2]
    assert "Q0?" in task.instances[0].args[0]
    assert "Q2?" not in task.instances[0].args[0]


def test_a_question_is_no_example_of_itself(folder: Any) -> None:
    rows = [question("a", 0, 0), question("a", 1, 1), question("a", 1, 1)]  # one stands there twice
    task = Questions("a", rows, rows, 5, lambda text: True)
    ask(lm(folder[0]), [task])
    assert task.shown == [2, 1, 1]
    assert all(instance.args[0].count(instance.doc["question"]) == 1 for instance in task.instances)


def test_the_protocol_asks_a_card(folder: Any) -> None:
    path, model = folder
    batches = open_splits(path, ASKED, "causal_lm")["test"]
    chain = Chain.build(RUN.chain).attach(model, 0)
    spec = EvalSpec.model_validate({"protocol": "multiple_choice", "options": {"shots": 1, "max_length": 128}})
    found = MultipleChoice(spec.options).measure(Subject(model, chain, batches, RUN, spec, CPU))
    right = found.items["correct"]
    assert found.metrics["questions"] == len(right) == 12
    assert found.metrics["accuracy"] == pytest.approx(sum(right) / 12)
    assert found.metrics["chance"] == 0.25
    assert (found.metrics["at_chance"] == "yes") == (found.metrics["low"] <= 0.25 <= found.metrics["high"])  # type: ignore[operator]
    assert sum(row["questions"] for row in found.records) == 12
    assert found.metrics["shots"] == 1
    with pytest.raises(ConfigError, match=r"split 'test' has no questions"):
        MultipleChoice(spec.options).measure(
            Subject(model, chain, batches, RUN, spec.model_copy(update={"rows": 0}), CPU)
        )


def test_the_interval_is_wilsons() -> None:
    from scipy.stats import binomtest

    for right, count in [(0, 9), (70, 281), (281, 281)]:
        theirs = binomtest(right, count).proportion_ci(method="wilson")
        assert wilson(right / count, count) == pytest.approx((theirs.low, theirs.high), abs=1e-7)


def example(choices: str, answer: str) -> str:
    return f"Q: What?\nNow.\n{choices}\nA: Let's think step by step. (A) it is. The answer is ({answer})."


def test_worked_examples_become_questions(tmp_path: Path) -> None:
    file, four = tmp_path / "prompts.json", "(A) one (B) two (C) 3 (D) four"
    file.write_text(json.dumps({"s": "\n\n".join(["Head.", example(four, "C"), example(f"{four} (E) five", "E")])}))
    ((_, found),) = examples(file)
    assert found == {"subject": "s", "question": "What?\nNow.", "choices": ["one", "two", "3", "four"], "answer": 2}
    file.write_text(json.dumps({"s": "Head.\n\nQ: What?\nA: nothing"}))
    with pytest.raises(IntegrityError, match=r"prompts.json\['s'\] example 1"):
        list(examples(file))


def test_questions_made_from_labels_have_the_right_answer(folder: Any) -> None:
    rows = [json.loads(line) for line in (folder[0] / "test.jsonl").read_text().splitlines()]
    labels = data_card("smoke_questions").labels
    assert all(sorted(row["choices"]) == sorted(labels) for row in rows)
    assert len({row["answer"] for row in rows}) > 1, "the right answer's place follows from the text"
    truth = {json.loads(line)["title"]: json.loads(line)["label"] for line in topics().splitlines()}
    assert all(row["choices"][row["answer"]] == truth[row["question"].split("\n")[0]] for row in rows)


def topics() -> str:
    return (Path(__file__).parents[1] / "resources" / "smoke" / "topics" / "topics.jsonl").read_text()


def test_a_template_is_compiled_once() -> None:
    compile_template = harness.utils.env.from_string
    assert compile_template("{{ question }}") is compile_template("{{ question }}")
    assert harness.utils.apply_template("{{ question }}", {"question": "Who?"}) == "Who?"
    assert harness.utils.apply_template("{{ question }}", {"question": "When?"}) == "When?"
