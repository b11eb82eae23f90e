# The demo and the tests on a CPU, in a container:
#   docker build -t kwanzaa .
#   docker run --rm -v kwanzaa-outputs:/home/kwanzaa/project/outputs kwanzaa make demo
#   docker run --rm kwanzaa make test
# Not yet built by Docker: hadolint passes it, and `make setup` ran in an empty folder and home.
# .devcontainer/devcontainer.json takes the first half and installs in the folder that you open.
FROM python:3.11-slim-bookworm AS system
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends chromium chromium-driver git make \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 --shell /bin/bash kwanzaa
# PyTorch without CUDA, as CI installs it
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu PIP_NO_CACHE_DIR=1
USER 1000

FROM system
WORKDIR /home/kwanzaa/project
COPY --chown=1000:1000 . .
RUN make setup && mkdir -p outputs
ENV PATH=/home/kwanzaa/project/.venv/bin:$PATH
CMD ["make", "demo"]
