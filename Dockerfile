# The page with the embedded model, as a user without rights:
#     docker build -t dalle . && docker run --rm -p 127.0.0.1:7860:7860 dalle
FROM python:3.12-slim

# Which PyTorch: "cpu", or one of CUDA's, such as "cu128", for `docker run --gpus all`.
ARG TORCH_BACKEND=cpu

RUN useradd --create-home --uid 1000 dalle && mkdir /home/dalle/.cache && chown dalle: /home/dalle/.cache
WORKDIR /project

# First what changes seldom. Where uv cannot reach the index of such a PyTorch, pip takes the usual one.
COPY requirements.txt ./
RUN pip install --no-cache-dir uv \
    && (uv pip install --system --no-cache --torch-backend "$TORCH_BACKEND" -r requirements.txt \
        || pip install --no-cache-dir -r requirements.txt)

COPY pyproject.toml README.md LICENSE ./
COPY dalle_core dalle_core
COPY demo demo
COPY assets/emoji assets/emoji
RUN pip install --no-cache-dir --no-deps .

USER dalle
WORKDIR /home/dalle
ENV GRADIO_SERVER_NAME=0.0.0.0
EXPOSE 7860
HEALTHCHECK --start-period=60s --timeout=10s CMD ["python", "-c", "from urllib.request import ProxyHandler, build_opener; \
build_opener(ProxyHandler({})).open('http://127.0.0.1:7860/', timeout=5)"]
ENTRYPOINT ["dalle"]
CMD ["page"]
