"""Tables, figures, claims and pages."""

for study, entry in PLAN["studies"].items():

    if entry["counted"]:

        rule:
            name:
                f"counts_{study}"
            output:
                counted(study),
            log:
                f"logs/tables/{study}-counts.log",
            benchmark:
                f"logs/benchmarks/counts/{study}.tsv"
            priority: 1  # seconds, beside a pack's tens: last of all
            localrule: True
            conda:
                "../../envs/conda.yaml"
            params:
                study=study,
                code=entry["count_code"],
            message:
                f"counts of {study} that no run enters"
            shell:
                "lowrank --log {log:q} tables --counted {params.study:q}"

    rule:
        name:
            f"tables_{study}"
        input:
            study_inputs(study),
            counted(study),
        output:
            [
                shown(study, file)
                for file in entry["outputs"]
                if file not in entry["counted"]
            ],
        log:
            f"logs/tables/{study}.log",
        benchmark:
            f"logs/benchmarks/tables/{study}.tsv"
        localrule: True
        conda:
            "../../envs/conda.yaml"
        params:
            study=study,
            scale=SCALE,
            code=entry["code"],
        message:
            f"tables, figures and claims of {study}"
        shell:
            "lowrank --log {log:q} tables {params.study:q}"

    rule:
        name:
            f"page_{study}"
        input:
            [f"results/studies/{study}/{file}" for file in entry["outputs"]],
        output:
            report(
                f"reports/{study}.html",
                caption="../report/page.rst",
                category=study,
                labels={"what": "page", "name": study},
            ),
            directory(f"reports/runs/{study}"),
        log:
            f"logs/pages/{study}.log",
        benchmark:
            f"logs/benchmarks/pages/{study}.tsv"
        localrule: True
        conda:
            "../../envs/conda.yaml"
        params:
            study=study,
            scale=SCALE,
            code=entry["page_code"],
        message:
            f"page of {study}"
        shell:
            "lowrank --log {log:q} page {params.study:q}"

    rule:
        name:
            study
        input:
            study_inputs(study),
            f"reports/{study}.html",
        localrule: True


rule index:
    input:
        [f"reports/{study}.html" for study in PLAN["studies"]],
    output:
        report(
            "reports/index.html",
            caption="../report/index.rst",
            category="All studies",
            labels={"what": "page", "name": "front page"},
        ),
        "results/runs.csv",
        "results/claims.json",
        "results/references.bib",
    log:
        "logs/pages/index.log",
    localrule: True
    conda:
        "../../envs/conda.yaml"
    params:
        scale=SCALE,
        code=[
            digest
            for entry in PLAN["studies"].values()
            for digest in entry["page_code"]
        ],
    message:
        "front page"
    shell:
        "lowrank --log {log:q} index"


rule extended:
    """What goes beyond the documents, and the report with it."""
    input:
        finished(pack for pack in PLAN["packs"].values() if pack["extended"]),
    log:
        "logs/pages/extended.log",
    localrule: True
    conda:
        "../../envs/conda.yaml"
    message:
        "the report, with the runs beyond the documents"
    shell:
        "lowrank --log {log:q} partial"


rule partial:
    log:
        "logs/pages/partial.log",
    localrule: True
    conda:
        "../../envs/conda.yaml"
    message:
        "the report, from the runs that exist"
    shell:
        "lowrank --log {log:q} partial"
