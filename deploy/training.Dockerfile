# Training on several machines, for deploy/kubernetes/train.yaml.
#
#   python -m build --wheel                                                  in the repository of UDC-Model
#   docker build -f deploy/training.Dockerfile --build-context package=dist -t REGISTRY/udc-training .
#
# The project itself is a volume that the machines share. The wheel of PyTorch for Linux contains CUDA.
FROM python:3.13-slim

# provenance: the commit of the project is recorded with each run
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --no-install-recommends -y git && rm -rf /var/lib/apt/lists/*

# hadolint ignore=DL3022
COPY --from=package *.whl /install/
COPY requirements.lock /install/
RUN python -m pip install --no-cache-dir -c /install/requirements.lock \
    "udc-model @ file://$(ls /install/udc_model-*.whl)" \
    && useradd --create-home --uid 1000 trainer

USER 1000
WORKDIR /project
CMD ["udc", "train"]
