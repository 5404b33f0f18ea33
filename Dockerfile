# An exported folder, served over HTTP on port 8000: docs/packaging.md.
#
#   docker build -t lorahub-edge .
#   docker run --rm -p 8000:8000 -v "$PWD/navigate-onnx:/model:ro" lorahub-edge

FROM python:3.12-bookworm AS build
WORKDIR /src
COPY CMakeLists.txt LICENSE README.md pyproject.toml ./
COPY csrc csrc
COPY lorahub_edge lorahub_edge
RUN LORAHUB_EDGE_CUDA=OFF python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim-bookworm
COPY constraints.txt /tmp/
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    python -m pip install --no-cache-dir --constraint /tmp/constraints.txt \
      "lorahub-edge @ file://$(echo /wheels/*.whl)"
# A number, so that a cluster can tell that it is not root. It owns nothing: the service writes no file.
USER 10001:10001
# onnxruntime 1.31 has telemetry, and it is on by default.
ENV PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1
EXPOSE 8000
# Open without a key, and 127.0.0.1 is always an allowed name. A service that is about to stop is still alive.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/livez'); raise SystemExit(c.getresponse().status != 200)"]
# `docker run` may add options: --adapter, --allowed-host, --threads ... The key comes as -e LORAHUB_EDGE_API_KEY.
ENTRYPOINT ["lorahub-edge", "serve", "/model", "--host", "0.0.0.0", "--port", "8000"]
