"""Compare methods on one base model, data, budget and evaluator: tables, fronts, costs, one HTML report.

python examples/compare.py methods=[moslim,morlhf,rewarded_soups] data=world seeds=3 output=runs/compare
python examples/compare.py methods=[moslim] datatypes=[1,2,3,4] algorithms=[rloo,ppo,online_dpo] output=runs/compare
python examples/compare.py data=DIR budget=folder output=runs/compare-real     # your own files
python examples/compare.py budget=smoke seeds=1 output=runs/smoke        # a few steps of everything

The same command goes on where it was stopped; stages that methods share run once, and again only where a setting that
they depend on has changed. Started several times at once, it divides the stages: ranks=1 twice is quicker on two cores
than ranks=2 once (docs/results.md). Processes on several nodes need a file system with locks; that was not tried yet.
The report is of the methods named in the call and replaces the one before: to add a method, name the earlier ones
again, whose finished stages are taken as they are.
"""

from nemo_moslim.cli import hydra_main


@hydra_main("compare", path_keys=("data", "output"), open_keys=("sizes",))
def main(config):
    from nemo_moslim.comparison_config import CompareConfig
    from nemo_moslim.config import parse

    checked = parse(config, CompareConfig)
    from nemo_moslim.comparison.compare import compare

    print(f"\nreport: {compare(checked)}")


if __name__ == "__main__":
    main()
