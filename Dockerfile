FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY exporter exporter
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist . \
    && python -m venv /opt/automation-exporter \
    && /opt/automation-exporter/bin/pip install --no-cache-dir "$(ls /dist/*.whl)[auth,grpc,re2]"

FROM python:3.13-slim
LABEL org.opencontainers.image.title="automation-exporter" \
      org.opencontainers.image.description="Prometheus metrics, OpenTelemetry traces and careful retries for automation platforms" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="The automation-exporter authors"
COPY --from=build /opt/automation-exporter /opt/automation-exporter
ENV PATH=/opt/automation-exporter/bin:$PATH PYTHONUNBUFFERED=1
RUN install -d -o 65532 -g 65532 /data
USER 65532:65532
# The default store, sqlite:///automation-exporter.db, is relative: it lands in the volume.
VOLUME /data
WORKDIR /data
# Inside a container `server.listen` must be 0.0.0.0:10870 to be reached from outside.
EXPOSE 10870
STOPSIGNAL SIGTERM
# Plain HTTP on the default port; with server.tls or another port, override it (--health-cmd).
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:10870/-/healthy', timeout=4)"]
ENTRYPOINT ["automation-exporter"]
CMD ["run", "--config", "/etc/automation-exporter/config.yaml"]
