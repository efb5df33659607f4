# `make image` builds this with docker, podman or buildah; `make image-test` builds and runs it, without a registry.
# BASE: any Debian with Python 3.11 or newer and its venv, `env` of coreutils 8.31 or newer, certificates, and the time zones.
ARG BASE=docker.io/library/python:3.13-slim

FROM ${BASE} AS build
# Two environments: one with pip that does the work, and the one that is shipped, which has none.
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/automation-exporter
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY image/build.lock image/requirements.lock /src/image/
# A layer that stays the same until a lock does. Nothing is taken that has not the hash it had when it was locked.
RUN /build/bin/pip install --only-binary :all: --require-hashes -r /src/image/build.lock \
    && /build/bin/pip --python /opt/automation-exporter/bin/python \
        install --only-binary :all: --require-hashes -r /src/image/requirements.lock
COPY pyproject.toml README.md LICENSE /src/
COPY alerts /src/alerts
COPY dashboards /src/dashboards
COPY docs/runbooks /src/docs/runbooks
COPY exporter /src/exporter
RUN cd /src && /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && /build/bin/pip --python /opt/automation-exporter/bin/python install --no-deps --no-index /dist/*.whl \
    && /build/bin/pip --python /opt/automation-exporter/bin/python check

FROM ${BASE}
# The base's own pip is of no use here.
RUN rm -rf /usr/local/bin/pip* /usr/local/lib/python3*/site-packages/pip* /usr/local/lib/python3*/ensurepip \
        /usr/bin/pip* /usr/lib/python3*/ensurepip /usr/lib/python3/dist-packages/pip* /usr/share/python-wheels \
    && install -d -o 65532 -g 65532 /data && install -d /etc/automation-exporter
COPY --from=build /opt/automation-exporter /opt/automation-exporter
ARG VERSION=unknown REVISION=unknown
LABEL org.opencontainers.image.title="automation-exporter" \
      org.opencontainers.image.description="Prometheus metrics, OpenTelemetry traces and careful retries for automation platforms" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="The automation-exporter authors" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The address is the default of server.listen, which would else be reached from inside only: leave `listen` out.
ENV PATH=/opt/automation-exporter/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    AUTOMATION_EXPORTER_CONFIG=/etc/automation-exporter/config.yaml \
    AUTOMATION_EXPORTER_LISTEN=0.0.0.0:10870
# A number, so that Kubernetes can see that it is not root. Nothing is written but in /data: the root may be read-only.
USER 65532:65532
# The default store, sqlite:///automation-exporter.db, is relative: it lands in the volume.
VOLUME /data
WORKDIR /data
EXPOSE 10870
STOPSIGNAL SIGTERM
# An image of the OCI's format has no health check (buildah and podman drop it, unless told --format docker), and
# Kubernetes never looks at it: there, and in compose, name the command again.
HEALTHCHECK --interval=30s --timeout=6s --start-period=30s --retries=3 CMD ["automation-exporter", "healthcheck"]
# As process 1 it would lose a signal that comes before Python has started; blocked, the signal waits.
ENTRYPOINT ["env", "--block-signal=TERM", "--block-signal=INT", "--block-signal=HUP", "automation-exporter"]
CMD ["run"]
