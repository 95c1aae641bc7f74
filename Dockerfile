# The server in a container, on the CPU by default:
#
#   docker build -t edgemllm .
#   docker run -p 8000:8000 -e EDGEMLLM_API_KEY=$(openssl rand -hex 32) -v edgemllm:/var/lib/edgemllm edgemllm
#
# On a Jetson, a base that has the board's PyTorch, which is kept, and `--runtime nvidia` for the run:
#
#   docker build --build-arg BASE=IMAGE-WITH-PYTORCH -t edgemllm .
ARG BASE=python:3.12-slim
FROM ${BASE}

WORKDIR /opt/edgemllm
COPY pyproject.toml README.md LICENSE ./
COPY edgemllm edgemllm
COPY configs configs
COPY scripts/locked.txt scripts/
# A torch that the base brings satisfies the requirement, and is not replaced.
RUN python3 -m pip install --no-cache-dir ".[serve]" \
    && mkdir -p /var/lib/edgemllm /media \
    && (id edgemllm >/dev/null 2>&1 || useradd --system --home-dir /var/lib/edgemllm edgemllm) \
    && chown edgemllm /var/lib/edgemllm

USER edgemllm
WORKDIR /var/lib/edgemllm
ENV HF_HOME=/var/lib/edgemllm/models \
    EDGEMLLM_STATE=/var/lib/edgemllm/sessions \
    EDGEMLLM_MEDIA_PATH=/media
VOLUME ["/var/lib/edgemllm", "/media"]
EXPOSE 8000
# Sessions are written when it ends; a large cache on a slow card takes a while: docker stop --time 60.
HEALTHCHECK --start-period=5m CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
# Every option is read from the environment too: -e EDGEMLLM_MODEL=qwen2.5-vl-3b. Without a key it does not start.
ENTRYPOINT ["edgemllm", "serve", "--host", "0.0.0.0"]
