# disagg on SGLang's own CUDA image. Made by `disagg deploy docker` from @FILE@: change that, and make this anew.
# BuildKit (Docker 23 or later) builds it, from a checkout of disagg:
#
#   docker build -f Dockerfile -t disagg:cuda CHECKOUT
#   docker run --rm --init --gpus all --ipc=host --ulimit memlock=-1 -p @PORT@:@PORT@ -v /data/models:@MODELS@ disagg:cuda
#
# Over several hosts with RDMA: --network host --cap-add IPC_LOCK --device /dev/infiniband as well.
FROM @BASE@

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_BREAK_SYSTEM_PACKAGES=1 PYTHONUNBUFFERED=1 \
    DISAGG_CACHE=@MODELS@/disagg HF_HOME=@MODELS@/huggingface
WORKDIR /opt/disagg

COPY @FILES@ ./
COPY ./configs ./configs
COPY ./disagg ./disagg
COPY ./prefill ./prefill
COPY ./decode ./decode
COPY ./transfer ./transfer
# The base's SGLang is named, so that pip keeps it.
RUN python3 -m pip install '.[cuda]' sglang==@SGLANG@ "ray[default,serve]==@RAY@"

COPY <<'END_OF_CONFIG' @CONFIG_PATH@
@CONFIG@
END_OF_CONFIG

# It stays root: IPC_LOCK, with which RDMA registers memory, does nothing for another user.
VOLUME @MODELS@
EXPOSE @PORT@
HEALTHCHECK --start-period=@START_S@s --interval=10s --timeout=5s \
    CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:@PORT@/ready', timeout=4)"]
CMD @COMMAND@
