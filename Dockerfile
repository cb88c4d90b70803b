# syntax=docker/dockerfile:1

FROM rust:1-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
COPY src src
# Embedded in the binary.
COPY sql sql
COPY triggers triggers
COPY static static
# Not built, but Cargo.toml names one.
COPY benches benches
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin rowcast \
    && cp target/release/rowcast /usr/local/bin/rowcast

FROM debian:bookworm-slim
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="Rowcast" \
      org.opencontainers.image.description="Keeps open screens in step with a PostgreSQL database" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
# To know the database's certificate.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /usr/local/bin/rowcast /usr/local/bin/rowcast
# A number, so that Kubernetes can see that it is not root.
USER 65532:65532
ENV ROWCAST_LISTEN=0.0.0.0:3000
EXPOSE 3000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 CMD ["rowcast", "healthcheck"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["rowcast"]
# There is no PostgreSQL in this image: DATABASE_URL says where one is.
CMD ["serve"]
