# docker build -t trn-emu . && docker run --rm trn-emu trn-emu doctor
# TORCH_INDEX: an index of PyTorch's CPU wheels (docs/installation.md); without it torch brings CUDA.
FROM python:3.11-slim AS build
ARG TORCH_INDEX=""
RUN apt-get update && apt-get install --yes --no-install-recommends g++ \
  && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/trn
ENV PATH=/opt/trn/bin:$PATH PIP_NO_CACHE_DIR=1
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0
COPY . /src
RUN pip install "/src[hf,parquet,vectors]"

# torch.compile needs a compiler at run time as well.
FROM python:3.11-slim
RUN apt-get update && apt-get install --yes --no-install-recommends g++ \
  && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/trn /opt/trn
ENV PATH=/opt/trn/bin:$PATH
CMD ["trn-emu", "doctor"]
