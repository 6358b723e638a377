"""Serve a reward model over HTTP; under torchrun rank 0 answers requests and the other ranks hold their parts.

python examples/serve_reward.py run=RUN|HF_DIR port=8080
torchrun --nproc-per-node 8 examples/serve_reward.py run=RUN host=0.0.0.0 parallel.tensor=4 parallel.pipeline=2
MOSLIM_SERVICE_TOKEN=SECRET python examples/serve_reward.py run=RUN      only with `Authorization: Bearer SECRET`
python examples/serve_reward.py run=RUN critic=true critic_dir=DIR       PPO's critic too, for algorithm.critic=service

Then POST /score, GET /model, /health, /metrics, and the interface's description at /openapi.json (docs/serving.md).
"""

from importlib.util import find_spec

from nemo_moslim.cli import hydra_main


@hydra_main("serve_reward", path_keys=("run", "critic_dir"))
def main(config):
    from nemo_moslim.config import parse
    from nemo_moslim.console import quiet_libraries
    from nemo_moslim.serve_config import ServeConfig

    checked = parse(config, ServeConfig)
    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} not installed: pip install -e '.[serve]'")
    quiet_libraries()
    from nemo_moslim.serving.serve import serve

    serve(checked)


if __name__ == "__main__":
    main()
