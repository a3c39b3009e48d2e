"""What the rules share: the files of packs and studies, and what --forcerun means for a pack."""

PACKS = [pack for pack in PLAN["packs"].values() if not pack["extended"]]
"""Those of `all`."""

RUN_FILES = ("spec.json", "history.parquet", "manifest.json")


def run_files(pack):
    names = RUN_FILES + (("weights.safetensors",) if pack["keep_weights"] else ())
    return [f"results/runs/{run}/{name}" for run in pack["members"] for name in names]


def scores(pack, evaluation):
    return [f"results/runs/{run}/eval/{evaluation}.json" for run in pack["members"]]


def trained(pack):
    """What training a pack writes; where no weights are kept, the scores too."""
    files = run_files(pack)
    if not pack["keep_weights"]:
        files += [file for name in pack["evaluations"] for file in scores(pack, name)]
    return files


def prepared_data(pack):
    """The data that training a pack reads: that of its scores too, where they are taken there."""
    names = {pack["data"]}
    if not pack["keep_weights"]:
        names |= set(pack["evaluations"].values())
    return [f"resources/prepared/{name}/manifest.json" for name in sorted(names)]


def asked(needs, processes=1):
    """What a job asks a scheduler for: what is planned, and more of what its earlier jobs ran out of."""
    whole = {**needs, "gpus": needs["gpus"] * processes}

    def value(name):
        return lambda wildcards, attempt, rulename: demand(
            SITE,
            whole,
            attempt,
            SETTINGS.preemptible,
            ran_short(job_name(rulename, wildcards), SITE.warn_seconds),
        )[name]

    return {name: value(name) for name in demand(SITE, whole, 1, SETTINGS.preemptible)}


def cpus(needs, processes=1):
    """CPU threads of a job: one for each process, or what a process with GPUs gets."""
    return processes * (SITE.gpu.cpus * needs["gpus"] or 1)


# Jobs that others wait for; any other's priority is the seconds that it is expected to take.
FIRST = 10**6


def urgency(pack):
    """Packs whose weights others wait for go first, then the longest, so that no core idles at the end."""
    bases = {card["run"] for card in PLAN["cards"].values()}
    ahead = 0 if bases.isdisjoint(pack["members"]) else FIRST
    return ahead + round(60 * pack["expected_minutes"])


def count_jobs():
    """Jobs of `all`: fetch, prepare, train, score, counts, tables, page, and the front page."""
    data = {
        name for pack in PACKS for name in {pack["data"], *pack["evaluations"].values()}
    }
    cards = {card for pack in PACKS for card in pack["cards"]}
    cards |= {card for name in data for card in PLAN["data"][name]["cards"]}
    scored = sum(len(pack["evaluations"]) for pack in PACKS if pack["keep_weights"])
    shape_jobs = sum(bool(entry["counted"]) for entry in PLAN["studies"].values())
    per_study = 2 * len(PLAN["studies"]) + shape_jobs
    return len(cards) + len(data) + len(PACKS) + scored + per_study + 1


def refuse_a_scale_by_default():
    """On a cluster the scale is said, never taken from config.yaml: hundreds of GPU hours hang on it."""
    remote = workflow.executor_plugin.common_settings.non_local_exec
    if remote and "scale" not in workflow.config_settings.overwrite_config:
        raise WorkflowError(
            "no scale was given for this cluster: --config replaces the profile's own `scale=paper`; "
            "write --config scale=paper (or smoke, laptop) with whatever else it says."
        )


def mark_forced_runs():
    """Leaves a mark for each run that --forcerun or --forceall names: its pack's job would skip it."""
    settings = workflow.dag_settings
    forced = {str(name) for name in settings.forcerun}
    for pack in PLAN["packs"].values():
        rule_forced = settings.forceall or rule_of("train", pack["name"]) in forced
        for run in pack["members"]:
            if rule_forced or any(
                name.startswith(f"results/runs/{run}/") for name in forced
            ):
                os.makedirs("work/forced", exist_ok=True)
                open(f"work/forced/{run}", "w").close()


def keep_finished_members():
    """Keeps what a job that failed had finished: Snakemake would remove it, and the next attempt train it again.

    Nothing half is kept by that: every command writes each of its files whole.
    """
    workflow.execution_settings.keep_incomplete = True


def allow_for_time_limits():
    """Lets a pack that is longer than a job may be come back once more for each time limit on its way.

    Not by the rule's own `retries:`, which the job's Snakemake would follow too, inside the same allocation.
    """
    given = workflow.execution_settings.retries
    for pack in PLAN["packs"].values() if given else []:
        trains = workflow.get_rule(rule_of("train", pack["name"]))
        trains.restart_times = given + SITE.jobs_for(pack["minutes"]) - 1


def finished(packs):
    """Every file of packs that are trained and scored."""
    files = []
    for pack in packs:
        files += trained(pack)
        if pack["keep_weights"]:
            files += [
                file for name in pack["evaluations"] for file in scores(pack, name)
            ]
    return files


def study_inputs(study):
    """Every trained and scored run that a study shows; of the target `extended`, what happens to be there."""
    return finished(pack for pack in PACKS if study in pack["owners"])


def counted(study):
    """The tables of a study that follow from shapes alone: their job waits for no run."""
    return [
        f"results/studies/{study}/{file}" for file in PLAN["studies"][study]["counted"]
    ]


def shown(study, file):
    """An output of a study, with its place in `snakemake --report`: figures and tables, one format each."""
    path = f"results/studies/{study}/{file}"
    name, kind = os.path.splitext(file)
    what = {".svg": "figure", ".html": "table", ".json": "claims"}.get(kind)
    if what is None:
        return path
    return report(
        path,
        caption=f"../report/{what}.rst",
        category=study,
        subcategory=f"{what}s" if what != "claims" else what,
        labels={"what": what, "name": name},
    )
