"""Which layouts of a training fit on a cluster, how much memory each takes and how fast it should be. Needs no GPU.

python examples/plan.py model=qwen2_72b task=rm gpus=64 gpu=h100

One layout alone, as one of conf/cluster says: 'search.tensor=[8]' 'search.pipeline=[4]' 'search.expert=[1]'.
The exit code is 1 where nothing fits. Give a reward model (and critic) of another size by model@reward_model=NAME.
"""

import os
import sys

from nemo_moslim.cli import hydra_main


@hydra_main("plan", path_keys=("output",))
def main(config):
    from nemo_moslim.config import parse
    from nemo_moslim.console import quiet_libraries
    from nemo_moslim.planning.settings import PlanConfig

    checked = parse(config, PlanConfig)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the models are only described: leave the GPUs of this machine alone
    quiet_libraries()
    from rich.console import Console
    from tqdm import tqdm

    from nemo_moslim.planning import report
    from nemo_moslim.planning.search import search

    found = search(checked, lambda layouts: tqdm(layouts, "layouts", leave=False, disable=None))
    if checked.output:
        report.write(found, checked)
    if not found.plans:
        print(report.nothing_fits(found, checked), file=sys.stderr)
        return 1
    report.show(found, checked, Console())
    return 0


if __name__ == "__main__":
    main()
