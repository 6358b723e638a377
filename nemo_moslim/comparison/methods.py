"""Each method as stages and operating points. One function per method: (bench, seed) -> points.

An operating point answers "what does this method give to a user with these weights?". Methods that read tags ask for
the highest level of every dimension whose weight is above 0; RiC asks for the scores that it maps the weights to.
"""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

from nemo_moslim.comparison.bench import RIVALS_DATATYPE, Bench, Point, full_name, listed, mapped, schema_of, short

LINE_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # along which soups of two policies are checked


def moslim(
    bench: Bench, seed: int, *, name: str = "moslim", datatype: int = 4, size: str = "", algorithm: str = ""
) -> list[Point]:
    """One multi-head reward model, one policy that reads tags."""
    return tagged_points(bench, name, seed, bench.tagged_policy(seed, datatype, size, algorithm), datatype)


def morlhf(bench: Bench, seed: int) -> list[Point]:
    """A policy per weight vector (Eq. 1)."""
    return [
        Point("morlhf", seed, bench.weighted_policy("weighted", weights, seed, "weighted_sum"), weights=weights)
        for weights in bench.grid
    ]


def gdpo(bench: Bench, seed: int) -> list[Point]:
    """A policy per weight vector, scores normalised among the answers to a prompt."""
    return [
        Point("gdpo", seed, bench.weighted_policy("gdpo", weights, seed, "gdpo"), weights=weights)
        for weights in bench.grid
    ]


def rewarded_soups(bench: Bench, seed: int) -> list[Point]:
    """A policy per dimension (Eq. 2), mixed for every weight vector and along the lines between each two."""
    names = bench.schema.names
    experts = {name: bench.weighted_policy("weighted", {name: 1.0}, seed, "weighted_sum") for name in names}

    def soup(weights: dict[str, float], on_grid: bool) -> Point:
        total = sum(weights.values())
        mixture = {str(experts[name]): weight / total for name, weight in weights.items()}
        return Point("rewarded_soups", seed, None, mixture=mixture, weights=weights, on_grid=on_grid)

    lines = [
        soup({first: 1.0 - share, second: share}, False)
        for first, second in combinations(names, 2)
        for share in LINE_SHARES
    ]
    return [*(soup(weights, True) for weights in bench.grid), *lines]


def modpo(bench: Bench, seed: int) -> list[Point]:
    """A policy per weight vector, on pairs that the first dimension of weight orders, others of weight as margins."""
    counted = [[name for name, weight in weights.items() if weight > 0] for weights in bench.grid]
    scored = {name for _, *others in counted for name in others}
    points = []
    for weights, (own, *others) in zip(bench.grid, counted, strict=True):
        answers = bench.scored_answers(n for n in bench.schema.names if n in scored) if others else bench.ratings()
        pairs = bench.baseline_data("-".join(["pairs", own, *others]), "modpo_pairs", answers, f"dimension={own}",
                                    f"margins=[{','.join(others)}]", *bench.budget.pairs)  # fmt: skip
        policy = bench.offline_policy(
            f"modpo-{short(weights)}", "train_dpo.py", bench.language_model(), pairs, seed, "loss=modpo",
            f"weights={mapped(weights)}", *bench.budget.dpo, *bench.budget.modpo,
        )  # fmt: skip
        points.append(Point("modpo", seed, policy, weights=weights))
    return points


def cpsft(bench: Bench, seed: int) -> list[Point]:
    """The first stage of CDPO by itself."""
    return tagged_points(bench, "cpsft", seed, bench.cpsft(seed))


def cdpo(bench: Bench, seed: int) -> list[Point]:
    """CPSFT, then DPO on pairs that the tags order (Eq. 3)."""
    pairs = bench.baseline_data("controlled-pairs", "cdpo_pairs", bench.ratings(), *bench.budget.pairs)
    policy = bench.offline_policy("cdpo", "train_dpo.py", bench.cpsft(seed), pairs, seed, "loss=dpo",
                                  *bench.budget.dpo, *bench.budget.cdpo)  # fmt: skip
    return tagged_points(bench, "cdpo", seed, policy)


def ric(bench: Bench, seed: int) -> list[Point]:
    """SFT on answers under their scores, then rounds on the best of its own answers."""
    offline = bench.baseline_data("ric-offline", "ric_offline", bench.scored_answers(bench.schema.names))
    policy = bench.offline_policy("ric-round0", "train_sft.py", bench.language_model(), offline, seed,
                                  *bench.budget.ric_offline)  # fmt: skip
    scored: list[Path] = []
    for number in range(1, bench.budget.ric_rounds + 1):
        place = f"ric-round{number}"
        asked = bench.baseline_data(f"{place}-prompts", "ric_prompts", bench.prompts(), f"offline={offline}",
                                    f"seed={seed * 1000 + number}", *bench.budget.ric_prompts)  # fmt: skip
        answers = bench.generate(f"{place}-answers-seed{seed}", policy, asked / "train.jsonl", seed * 1000 + number)
        scored.append(bench.score(f"{place}-scored-seed{seed}", answers, "scored.jsonl",
                                  bench.schema.names))  # fmt: skip
        best = bench.baseline_data(f"{place}-best", "ric_online", listed(scored), f"offline={offline}",
                                   *bench.budget.ric_best)  # fmt: skip
        policy = bench.offline_policy(place, "train_sft.py", policy, best, seed, *bench.budget.ric_online)
    asked = dict(prefix="scores", offline=offline)
    return [
        *(Point("ric", seed, policy, weights=weights, **asked) for weights in bench.grid),
        Point("ric", seed, policy, on_grid=False, **asked),
    ]


def start(bench: Bench) -> list[Point]:
    """The SFT model that all policies start from: no method, the origin of their moves, alike at all weights."""
    return [Point("start", 1, bench.language_model(), weights=weights) for weights in bench.grid]


def tagged_points(bench: Bench, method: str, seed: int, policy: Path, datatype: int = 4) -> list[Point]:
    """A policy that reads tags: at every weight vector and, with the levels that the test prompts have, at theirs."""
    asked = dict(prefix="levels", schema=schema_of(datatype).to_dict())
    grid = [Point(method, seed, policy, **asked, weights=weights) for weights in bench.grid]
    own = [Point(method, seed, policy, **asked, on_grid=False)] if datatype == RIVALS_DATATYPE else []
    return [*grid, *own]


METHODS: dict[str, Callable[[Bench, int], list[Point]]] = {
    "moslim": moslim,
    "morlhf": morlhf,
    "rewarded_soups": rewarded_soups,
    "gdpo": gdpo,
    "modpo": modpo,
    "cpsft": cpsft,
    "cdpo": cdpo,
    "ric": ric,
}


def variant_name(size: str, algorithm: str, datatype: int, base: tuple[str, str]) -> str:
    """A MOSLIM's name in the results; "moslim" for the one with the first size and algorithm on DataType 4."""
    is_moslim = (size, algorithm) == base and datatype == RIVALS_DATATYPE
    return "moslim" if is_moslim else full_name(algorithm, size, datatype)


def moslim_variants(bench: Bench) -> dict[str, dict]:
    """Name -> settings of every further MOSLIM: other DataTypes, reward-model sizes (Table 3), algorithms (Table 4)."""
    config, variants = bench.config, {}
    base = (bench.first_size, config.algorithms[0])
    for datatype in config.datatypes:
        pairs = [*((size, base[1]) for size in config.sizes), *((base[0], a) for a in config.algorithms[1:])]
        for size, algorithm in pairs:
            name = variant_name(size, algorithm, datatype, base)
            if name != "moslim":
                variants[name] = dict(name=name, datatype=datatype, size=size, algorithm=algorithm)
    return variants
