# syntax=docker/dockerfile:1
# The build needs a C compiler (aws-lc, SQLite, zstd, xz) and nothing else; the image holds the binary,
# glibc and the system's certificates, no shell.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# Both folders are caches of the builder, not part of a layer: the binary is copied out of one.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin narvault \
    && install -D target/release/narvault /out/usr/local/bin/narvault
# A new named volume takes owner and mode of the folder that it is mounted over.
RUN install -d -m 0700 -o 65532 -g 65532 /volumes/narvault /volumes/narvault-vault

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/ /
COPY --from=build --chown=65532:65532 /volumes/ /var/lib/
USER 65532:65532
WORKDIR /var/lib/narvault
ENV NARVAULT_DATA=/var/lib/narvault \
    NARVAULT_LISTEN=0.0.0.0:8750
EXPOSE 8750
VOLUME ["/var/lib/narvault", "/var/lib/narvault-vault"]
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["narvault", "check", "--ready"]
ENTRYPOINT ["narvault"]
CMD ["serve"]
