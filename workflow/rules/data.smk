"""Fetching and preparing data: the only place that touches the network."""


rule fetch:
    input:
        # A card that the pipeline trains itself: the run whose weights it holds.
        lambda wildcards: [
            f"results/runs/{run}/weights.safetensors"
            for run in [PLAN["cards"][wildcards.card]["run"]]
            if run
        ],
    output:
        "resources/downloads/{card}/manifest.json",
    log:
        "logs/fetch/{card}.log",
    priority: FIRST
    localrule: True
    conda:
        "../../envs/conda.yaml"
    params:
        pin=lambda wildcards: PLAN["cards"][wildcards.card]["pin"],
    message:
        "fetch {wildcards.card}"
    shell:
        "HF_HUB_OFFLINE=0 lowrank --log {log:q} fetch {wildcards.card:q}"


rule prepare:
    input:
        cards=lambda wildcards: [
            f"resources/downloads/{card}/manifest.json"
            for card in PLAN["data"][wildcards.data]["cards"]
        ],
    output:
        "resources/prepared/{data}/manifest.json",
    log:
        "logs/prepare/{data}.log",
    benchmark:
        "logs/benchmarks/prepare/{data}.tsv"
    priority: FIRST
    # Small data is prepared where Snakemake runs; the documents' own takes hours of a core.
    localrule: SCALE != "paper"
    conda:
        "../../envs/conda.yaml"
    resources:
        **asked({"mem_mb": 16000, "minutes": 360, "gpus": 0}),
    params:
        code=lambda wildcards: PLAN["data"][wildcards.data]["code"],
    message:
        "prepare {wildcards.data}"
    shell:
        "lowrank --log {log:q} prepare {wildcards.data:q}"
