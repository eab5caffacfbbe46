# syntax=docker/dockerfile:1
# With libstdc++, as Debian's slim images have it: the filters need it.
ARG PYTHON_IMAGE=python:3.13-slim-trixie

FROM ${PYTHON_IMAGE} AS build
WORKDIR /app
COPY requirements.lock ./
# A virtual environment without pip: the image gets what runs, not what installs.
RUN python3 -m venv --without-pip /opt/venv \
    && python3 -m pip --python /opt/venv/bin/python install --no-cache-dir \
        --disable-pip-version-check --no-compile --require-hashes --only-binary :all: \
        -r requirements.lock \
    && rm requirements.lock \
    # What one distribution brings along: a copy of its build folder, which nothing can import, and 37 MB of
    # extensions of CEL, which filters do not have.
    && rm -rf /opt/venv/lib/python*/site-packages/bazel-project \
        /opt/venv/lib/python*/site-packages/cel_expr_python/ext
COPY service/ service/
COPY schemas/ schemas/
# Modules are compiled here, because the container may write nothing; unchecked, because neither
# sources nor times change any more.
RUN printf '#!/opt/venv/bin/python\nimport sys\n\nfrom service.cli import main\n\nsys.exit(main())\n' \
        > /opt/venv/bin/webhook-dispatcher \
    && chmod 755 /opt/venv/bin/webhook-dispatcher \
    && echo /app > "$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/app.pth" \
    && /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/venv/lib service \
    && chmod -R a+rX /app /opt/venv

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="webhook-dispatcher" \
      org.opencontainers.image.description="Delivers domain events from RabbitMQ to subscribed webhooks" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
# Probes and metrics come from outside the container.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DISPATCHER_ADMIN_HOST=0.0.0.0
WORKDIR /app
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + (os.environ.get('DISPATCHER_ADMIN_PORT') or '8080') + '/livez', timeout=4)"]
ENTRYPOINT ["webhook-dispatcher"]
CMD ["run"]
