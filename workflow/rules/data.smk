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
    params:
        pin=lambda wildcards: PLAN["cards"][wildcards.card]["pin"],
    log:
        "logs/fetch/{card}.log",
    shell:
        "HF_HUB_OFFLINE=0 lowrank fetch {wildcards.card} > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"


rule prepare:
    input:
        cards=lambda wildcards: [
            f"resources/downloads/{card}/manifest.json"
            for card in PLAN["data"][wildcards.data]["cards"]
        ],
    output:
        "resources/prepared/{data}/manifest.json",
    params:
        code=lambda wildcards: PLAN["data"][wildcards.data]["code"],
    log:
        "logs/prepare/{data}.log",
    benchmark:
        "logs/benchmarks/prepare/{data}.tsv"
    shell:
        "lowrank prepare {wildcards.data:q} > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"
