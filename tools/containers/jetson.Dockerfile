# The runner on a Jetson (JetPack 6: L4T 36, CUDA 12.6, TensorRT 10.3). On the Jetson, from the checkout, with the folder
# wheels/ of docs/guide/jetson.md and NVIDIA's wheel of PyTorch for this JetPack in it:
#   docker build -f tools/containers/jetson.Dockerfile -t medisseg .
#   docker run --runtime nvidia --rm medisseg doctor
# syntax=docker/dockerfile:1
FROM nvcr.io/nvidia/l4t-jetpack:r36.4.0
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends \
    g++ python3-dev python3-venv libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home --home-dir /data --groups video medisseg
WORKDIR /src
COPY . .
# TensorRT comes with JetPack; everything else from the folder, nothing from a network.
RUN python3 -m venv --system-site-packages /opt/medisseg \
    && /opt/medisseg/bin/pip install --no-cache-dir --no-index --find-links wheels \
       --requirement tools/build-requirements.txt \
    && /opt/medisseg/bin/pip install --no-cache-dir --no-index --find-links wheels --no-build-isolation ".[serve]"
ENV PATH=/opt/medisseg/bin:$PATH HOME=/data PYTHONUNBUFFERED=1
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["medisseg"]
CMD ["doctor"]
