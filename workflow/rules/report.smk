"""Tables, figures, claims and pages."""


def study_inputs(study):
    """Every trained and scored run that a study shows."""
    files = []
    for pack in PLAN["packs"].values():
        if study in pack["owners"]:
            files += trained(pack)
            if pack["keep_weights"]:
                files += [file for name in pack["evaluations"] for file in scores(pack, name)]
    return files


for study, entry in PLAN["studies"].items():

    rule:
        name:
            f"tables_{study}"
        input:
            study_inputs(study),
        output:
            [f"results/studies/{study}/{file}" for file in entry["outputs"]],
        params:
            study=study,
            scale=SCALE,
            code=entry["code"],
        log:
            f"logs/tables/{study}.log",
        shell:
            "lowrank tables {params.study:q} > {log} 2>&1 || {{ code=$?; cat {log} >&2; exit $code; }}"

    rule:
        name:
            f"page_{study}"
        input:
            [f"results/studies/{study}/{file}" for file in entry["outputs"]],
        output:
            f"reports/{study}.html",
        params:
            study=study,
            scale=SCALE,
            code=entry["page_code"],
        log:
            f"logs/pages/{study}.log",
        shell:
            "lowrank page {params.study:q} > {log} 2>&1 || {{ code=$?; tail -n 40 {log} >&2; exit $code; }}"

    rule:
        name:
            study
        input:
            f"reports/{study}.html",


rule index:
    input:
        [f"reports/{study}.html" for study in PLAN["studies"]],
    output:
        "reports/index.html",
    params:
        scale=SCALE,
        code=[entry["page_code"] for entry in PLAN["studies"].values()],
    log:
        "logs/pages/index.log",
    shell:
        "lowrank index > {log} 2>&1 || {{ code=$?; cat {log} >&2; exit $code; }}"
