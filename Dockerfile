# The service and the connectors it ships, in an image of python and one virtual environment.
#   docker build --build-arg VERSION=0.1.0 --tag connector-service:0.1.0 .
# To add connectors of your own, build from this image, or mount them and set PYTHONPATH.

# Like the slim image below, with a C compiler; nothing of it is left there.
FROM python:3.11-bookworm AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python3 -m venv /build
# Every distribution of the lock, checked by hash; what follows takes from these alone.
COPY requirements.lock ./
RUN /build/bin/pip download --quiet --only-binary=:all: --require-hashes \
      --requirement requirements.lock --dest /wheels
COPY LICENSE README.md hatch_build.py pyproject.toml ./
COPY connector_service ./connector_service
RUN /build/bin/pip install --quiet --no-index --find-links=/wheels cython hatchling setuptools \
 && /build/bin/pip wheel --quiet --no-index --no-deps --no-build-isolation --wheel-dir=/wheels . \
 && python3 -m venv --without-pip /opt/connector-service \
 && /build/bin/pip --python /opt/connector-service/bin/python3 install --quiet --no-index \
      --find-links=/wheels "connector-service[duckdb,redis]"

FROM python:3.11-slim-bookworm
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="connector-service" \
      org.opencontainers.image.description="The standalone connector service for Flyte" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=builder /opt/connector-service /opt/connector-service
# The default address is the loopback; a container is reached from outside. The root may be
# read-only: only /tmp is written to, and by connectors alone.
ENV PATH=/opt/connector-service/bin:$PATH \
    CONNECTOR_SERVICE_HOST=:: \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# connector-service.toml is read from here when something is mounted.
WORKDIR /etc/connector-service
USER 65532:65532
EXPOSE 8000 9090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["connector-service", "call", "health", "--endpoint", "127.0.0.1:8000"]
ENTRYPOINT ["connector-service"]
CMD ["serve"]
