# The sidecar as an image: no root, no shell needed, nothing written; see deploy/image_test.sh for what is checked.
ARG PYTHON_VERSION=3.13

FROM python:${PYTHON_VERSION}-slim AS build
WORKDIR /src
RUN python -m venv /opt/builder && python -m venv --without-pip /opt/celery-lookout
# Before the code, so that a change of the code does not fetch them again. Each package is checked by its hash.
COPY requirements/build.txt requirements/runtime.txt requirements/
RUN /opt/builder/bin/pip install --no-cache-dir --require-hashes -r requirements/build.txt \
    && /opt/builder/bin/pip --python /opt/celery-lookout install --no-cache-dir --require-hashes -r requirements/runtime.txt
# .dockerignore lets through what the wheel is made of, and no more.
COPY . .
RUN /opt/builder/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir dist . \
    && /opt/builder/bin/pip --python /opt/celery-lookout install --no-cache-dir --no-deps --no-index dist/*.whl

# Only on request (--target demo): the demo's shop, for the workers, beat and the load of deploy/compose.yaml.
FROM build AS demo
RUN /opt/builder/bin/pip --python /opt/celery-lookout install --no-cache-dir --require-hashes -r requirements/demo.txt \
    && /opt/builder/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir dist-signals ./signals \
    && /opt/builder/bin/pip --python /opt/celery-lookout install --no-cache-dir --no-deps --no-index dist-signals/*.whl
ENV PATH="/opt/celery-lookout/bin:${PATH}"
USER 65532:65532

FROM python:${PYTHON_VERSION}-slim
LABEL org.opencontainers.image.title="celery-lookout" \
      org.opencontainers.image.description="A Prometheus sidecar for Celery" \
      org.opencontainers.image.licenses="MIT"
# The same path in both stages: a virtual environment does not move. Its byte code is compiled already.
COPY --from=build /opt/celery-lookout /opt/celery-lookout
ENV PATH="/opt/celery-lookout/bin:${PATH}" \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# For a volume with the state file (LOOKOUT_STATE_FILE): a new one gets the owner of this folder.
RUN install -d -o 65532 -g 65532 /var/lib/celery-lookout
# A number, so that Kubernetes can tell that it is not root. Any other works as well: no file that it needs belongs to it.
USER 65532:65532
EXPOSE 9808
# For another port set LOOKOUT_WEB_LISTEN_ADDRESS rather than the option, and this check follows. With TLS replace it.
HEALTHCHECK --interval=15s --timeout=5s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; a = os.environ.get('LOOKOUT_WEB_LISTEN_ADDRESS', ':9808'); r.urlopen('http://127.0.0.1:' + a.rpartition(':')[2] + '/-/healthy', timeout=4)"]
# Exec form: the program is process 1 and gets SIGTERM itself.
ENTRYPOINT ["celery-lookout"]
CMD ["serve"]
