# docker build -f docker/cuda.Dockerfile -t detr-panoptic:cuda .
# docker run --rm --gpus all --shm-size 8g -v /data:/data -v "$PWD/output:/home/user/output" \
#     -e DETECTRON2_DATASETS=/data detr-panoptic:cuda train --config-file detr_panoptic_R50.yaml --num-gpus 8
#
# PyPI's wheels of PyTorch bring CUDA with them; the host needs NVIDIA's driver and container toolkit.
# This image has not been built: there was no container engine.
FROM python:3.12-slim

RUN useradd --create-home user
COPY . /src
RUN pip install --no-cache-dir '/src[video,web]' \
    && python /src/tools/install_detectron2.py \
    && rm -rf /src

USER user
WORKDIR /home/user
ENTRYPOINT ["detr-panoptic"]
CMD ["--help"]
