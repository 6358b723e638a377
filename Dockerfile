# syntax=docker/dockerfile:1
# docker build -t nemo_moslim --build-arg REVISION="$(git rev-parse HEAD)" .
#
# The base is NeMo Framework 25.11: PyTorch 2.9, CUDA 13.0, Transformer Engine 2.9, megatron-core 0.15.0 (dev), NeMo
# 2.6.0, NeMo Run 0.7.0, ModelOpt 0.37.0, NVRx 0.4.1, according to docs/releases/software-versions.md of
# github.com/NVIDIA-NeMo/Megatron-Bridge. No tag holds NeMo 2.7.3 with megatron-core 0.15.3: 26.02 has NeMo 2.7.0 on
# megatron-core 0.16.0, which dropped what NeMo's checkpoint IO imports. So these two are installed over the base's, and
# the build ends with a check of what Python then finds.
ARG BASE=nvcr.io/nvidia/nemo:25.11
FROM ${BASE}

ARG BASE
ARG REVISION=unknown
LABEL org.opencontainers.image.title="nemo_moslim" \
      org.opencontainers.image.description="MOSLIM on NVIDIA NeMo: one reward model, one prompt-controlled policy" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}"

# --no-deps: torch, Transformer Engine, Apex and what else was built for the base's CUDA stay as they are
RUN python -m pip install --no-cache-dir --no-deps nemo_toolkit==2.7.3 megatron-core==0.15.3

# What the base may lack, with what they need in turn; nothing that the base has is moved
RUN python -m pip list --format=freeze > /tmp/base.txt \
    && python -m pip install --no-cache-dir --constraint /tmp/base.txt fastapi uvicorn prometheus_client moocore pytest pytest-timeout \
    && rm /tmp/base.txt

COPY . /opt/nemo_moslim
WORKDIR /opt/nemo_moslim
RUN python -m pip install --no-cache-dir --no-deps . \
    && python docker/check_versions.py

RUN useradd --create-home --uid 10001 moslim
USER 10001
# matrix products in fp32 (the reward model's heads) are fp32: NVIDIA's images turn TF32 on
ENV TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=0
