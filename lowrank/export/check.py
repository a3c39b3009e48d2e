"""Loads an exported folder as its users do, and compares its logits; run as a process of its own.

    python -P lowrank/export/check.py FOLDER PROBE [BASE_WEIGHTS]

It knows torch, transformers and PEFT only, nothing of this project: what it loads, anyone can. PROBE is a
safetensors file of inputs and expected logits. It prints one line of JSON: the largest drift, or a fault.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file


def load(folder: Path, facts: dict[str, Any], base_weights: Path | None) -> Any:
    """The exported model, every file's tensors proven to be in it.

    Raises:
        ValueError: a tensor that is missing, left over or not what the file says.
    """
    auto = getattr(transformers, facts["auto_class"])
    if facts["to"] == "merged":
        model, found = auto.from_pretrained(folder, dtype="auto", output_loading_info=True)
        faults = {key: sorted(map(str, value)) for key, value in found.items() if value and key != "error_msgs"}
        if faults:
            raise ValueError(f"tensors do not fit the model: {faults}")
        return model.eval()
    from peft import PeftModel, get_peft_model_state_dict

    options: dict[str, Any] = {}
    if facts["quantization"] is not None:
        options["quantization_config"] = transformers.BitsAndBytesConfig(**facts["quantization"])
    config = transformers.AutoConfig.from_pretrained(folder / "base")
    base = auto.from_pretrained(base_weights or folder / "base", config=config, dtype=config.dtype, **options)
    model = PeftModel.from_pretrained(base, folder)
    saved = load_file(folder / "adapter_model.safetensors")
    held = get_peft_model_state_dict(model, save_embedding_layers=False)
    if not saved or saved.keys() != held.keys():
        raise ValueError(f"the adapter's tensors match nothing: {sorted(saved.keys() ^ held.keys())[:3]}")
    for name, tensor in saved.items():
        if not torch.equal(tensor, held[name].to("cpu", tensor.dtype)):  # transformers puts a base in 4 bits on a GPU
            raise ValueError(f"tensor {name} is not loaded")
    return model.eval()


def check(folder: Path, probe: Path, base_weights: Path | None) -> dict[str, Any]:
    """What is found: `drift` and `largest`, in logits, or `fault`."""
    facts = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    tensors = load_file(probe)
    expected = tensors.pop("logits")
    try:
        model = load(folder, facts, base_weights)
    except ValueError as error:
        return {"fault": str(error)}
    if facts["tokenizer"] is not None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        found = tokenizer(facts["tokenizer"]["text"])["input_ids"]
        if found != facts["tokenizer"]["input_ids"]:
            return {"fault": f"the tokenizer gives {found}, expected {facts['tokenizer']['input_ids']}"}
    with torch.no_grad():
        logits = model(**{name: tensor.to(model.device) for name, tensor in tensors.items()}).logits.float().cpu()
    if logits.ndim == 3:
        logits = logits[tensors["attention_mask"].bool()]
    return {"drift": (logits - expected).abs().max().item(), "largest": expected.abs().max().item()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    arguments = [Path(argument) for argument in sys.argv[1:]]
    print(json.dumps(check(arguments[0], arguments[1], arguments[2] if len(arguments) > 2 else None)))
