# docker build -f docker/cpu.Dockerfile -t detr-panoptic:cpu .
# docker run --rm -v "$PWD/output:/home/user/output" detr-panoptic:cpu demo
#
# This image has not been built: there was no container engine.
FROM python:3.12-slim

RUN useradd --create-home user
COPY . /src
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu '/src[video,web]' \
    && python /src/tools/install_detectron2.py \
    && rm -rf /src

USER user
WORKDIR /home/user
ENV OMP_WAIT_POLICY=PASSIVE
ENTRYPOINT ["detr-panoptic"]
CMD ["--help"]
