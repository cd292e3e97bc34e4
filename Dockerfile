# Restore photographs without installing anything but a container engine.
#
#   docker build -t osdhuman .                            CPU
#   docker build -t osdhuman --build-arg EXTRA=cuda12 .   NVIDIA, by jax[cuda12]; run it with --gpus all
#
#   docker run --rm -u "$(id -u):$(id -g)" -v "$PWD":/work -v osdhuman-cache:/cache \
#       osdhuman restore photos/ --output restored/
#   docker run --rm -p 7860:7860 osdhuman app --host 0.0.0.0
FROM python:3.12-slim

# Extras of the package, with commas between them: app is the page.
ARG EXTRA=""

# Of a run: programs once compiled stay in /cache, a volume that any user can write.
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    JAX_COMPILATION_CACHE_DIR=/cache
RUN mkdir -m 1777 /cache /work

# The pinned dependencies first: they change less often than the code.
WORKDIR /opt/osdhuman
COPY requirements.txt constraints.txt ./
RUN pip install -r requirements.txt

COPY pyproject.toml README.md LICENSE ./
COPY osdhuman_jax osdhuman_jax
COPY curate curate
RUN pip install -c constraints.txt -r requirements.txt ".[app${EXTRA:+,$EXTRA}]"

VOLUME /cache
WORKDIR /work
EXPOSE 7860
ENTRYPOINT ["osdhuman"]
CMD ["--help"]
