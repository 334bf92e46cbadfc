# disagg with engines for machines without a GPU. Made by `disagg deploy docker` from @FILE@: change that, and make this
# anew. BuildKit (Docker 23 or later) builds it, from a checkout of disagg:
#
#   docker build -f Dockerfile -t disagg:cpu CHECKOUT
#   docker run --rm -v disagg-models:@MODELS@ disagg:cpu disagg model get smollm2
#   docker run --rm --init --shm-size 2g -p @PORT@:@PORT@ -v disagg-models:@MODELS@ disagg:cpu
FROM @BASE@

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 \
    DISAGG_CACHE=@MODELS@/disagg HF_HOME=@MODELS@/huggingface
WORKDIR /opt/disagg

# The engines first, all pinned: what changes most often comes last.
COPY ./disagg/errors.py ./disagg/installed.py ./disagg/__init__.py ./disagg/
COPY ./disagg/cpu_profile ./disagg/cpu_profile
RUN PYTHONPATH=. python3 -m disagg.cpu_profile.profile

COPY @FILES@ ./
COPY ./configs ./configs
COPY ./disagg ./disagg
COPY ./prefill ./prefill
COPY ./decode ./decode
COPY ./transfer ./transfer
RUN python3 -m pip install --constraint disagg/cpu_profile/requirements.txt . "ray[default,serve]==@RAY@" \
    && useradd --create-home --uid 1000 disagg \
    && mkdir -p @MODELS@ \
    && chown disagg: @MODELS@

COPY <<'END_OF_CONFIG' @CONFIG_PATH@
@CONFIG@
END_OF_CONFIG

USER disagg
WORKDIR /home/disagg
VOLUME @MODELS@
EXPOSE @PORT@
HEALTHCHECK --start-period=@START_S@s --interval=10s --timeout=5s \
    CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:@PORT@/ready', timeout=4)"]
CMD @COMMAND@
