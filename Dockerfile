# A static binary on nothing: no shell, no C library, no package of anybody.
#
#   docker build -t litestream .
#   docker run --rm -v /srv/data:/data -v ./litestream.yml:/etc/litestream.yml litestream replicate
#
# See docs/docker.md.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY crates crates
COPY src src
COPY etc etc
# Linked statically against glibc: SQLite needs nothing of it at run time that is not in the archive.
ENV RUSTFLAGS="-C target-feature=+crt-static"
RUN cargo build --locked --release --target "$(rustc -vV | sed -n 's/^host: //p')" \
    && strip -o /litestream target/*/release/litestream \
    && mkdir -p /empty/tmp /empty/data /empty/etc \
    && chmod 1777 /empty/tmp \
    && echo 'litestream:x:10001:10001::/data:/none' > /empty/etc/passwd \
    && echo 'litestream:x:10001:' > /empty/etc/group \
    && chown 10001:10001 /empty/data

FROM scratch
COPY --from=build /empty/ /
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /litestream /usr/local/bin/litestream
ENV PATH=/usr/local/bin
# Root, as in Litestream's image: whose files databases are is not known here. `--user 10001` works too.
ENTRYPOINT ["/usr/local/bin/litestream"]
