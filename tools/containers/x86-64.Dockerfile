# The runner on an x86-64 machine, with or without an NVIDIA GPU. From the checkout:
#   docker build -f tools/containers/x86-64.Dockerfile -t medisseg .
# syntax=docker/dockerfile:1
FROM python:3.12-slim-bookworm AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN python -m venv /opt/medisseg \
    && /opt/medisseg/bin/pip install --no-cache-dir --constraint constraints.txt --requirement tools/build-requirements.txt \
    && /opt/medisseg/bin/pip install --no-cache-dir --constraint constraints.txt --no-build-isolation ".[serve]"

FROM python:3.12-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home --home-dir /data medisseg
COPY --from=build /opt/medisseg /opt/medisseg
ENV PATH=/opt/medisseg/bin:$PATH HOME=/data PYTHONUNBUFFERED=1
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["medisseg"]
CMD ["doctor"]
