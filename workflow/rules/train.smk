"""One rule per pack. Its outputs are `update(...)`d: a member that is finished is never trained again.

A rule that lists its members as plain outputs would wipe and retrain all of them when one is missing.
"""

for pack in PLAN["packs"].values():

    rule:
        name:
            rule_of("train", pack["name"])
        input:
            data=prepared_data(pack),
            cards=[
                f"resources/downloads/{card}/manifest.json" for card in pack["cards"]
            ],
        output:
            [update(file) for file in trained(pack)],
        log:
            f"logs/train/{pack['name']}.log",
        benchmark:
            f"logs/benchmarks/train/{pack['name']}.tsv"
        priority: urgency(pack)
        conda:
            "../../envs/conda.yaml"
        threads: cpus(pack, pack["processes"])
        resources:
            **asked(pack, pack["processes"]),
        params:
            pack=pack["name"],
            code=pack["code"],
            processes=pack["processes"],
        message:
            f"train {pack['name']}: {len(pack['members'])} runs, {pack['steps']} steps"
        shell:
            "lowrank --log {log:q} train {params.pack:q} --threads {threads} --processes {params.processes}"

    for evaluation in pack["evaluations"] if pack["keep_weights"] else []:

        rule:
            name:
                rule_of("evaluate", pack["name"], evaluation)
            input:
                run_files(pack),
                data=f"resources/prepared/{pack['evaluations'][evaluation]}/manifest.json",
            output:
                [update(file) for file in scores(pack, evaluation)],
            log:
                f"logs/evaluate/{pack['name']}-{evaluation}.log",
            benchmark:
                f"logs/benchmarks/evaluate/{pack['name']}-{evaluation}.tsv"
            conda:
                "../../envs/conda.yaml"
            threads: cpus(pack)
            resources:
                **asked(pack),
            params:
                pack=pack["name"],
                evaluation=evaluation,
                code=[pack["evaluate_code"], PLAN["evaluations"][evaluation]["code"]],
            message:
                f"score {pack['name']}: {len(pack['members'])} runs by {evaluation}"
            shell:
                "lowrank --log {log:q} evaluate {params.pack:q} {params.evaluation:q} --threads {threads}"
