# Millrace with its embedded PostgreSQL, or in front of another server:
#   docker build -t millrace .
#   docker run -p 127.0.0.1:6875:6875 -v millrace:/data millrace
#   docker run -p 6875:6875 -e MILLRACE_UPSTREAM=postgres://user@db:5432/shop -e PGPASSWORD=... -v millrace:/data millrace
# The embedded PostgreSQL asks for no password: publish its port to trusted machines only, as above.

FROM node:22-bookworm-slim AS build
WORKDIR /build
COPY package.json package-lock.json ./
RUN npm ci --no-audit --no-fund
COPY tsconfig.json tsconfig.build.json ./
COPY grammar grammar
COPY src src
RUN node src/launch.mjs build
# The platform packages of PostgreSQL stay, with their library links made; compilers and test tools go.
RUN npm prune --omit=dev --no-audit --no-fund

FROM node:22-bookworm-slim
ENV NODE_ENV=production \
    MILLRACE_LISTEN=0.0.0.0:6875 \
    MILLRACE_HTTP=0.0.0.0:6876 \
    MILLRACE_DATA_DIR=/data
WORKDIR /app
COPY --from=build /build/package.json ./
COPY --from=build /build/node_modules node_modules
COPY --from=build /build/dist dist
COPY LICENSE ./
# The links are made now: at run time the user below may not write here.
RUN node -e "import('/app/dist/server/postgres-binaries.js').then((m) => console.log('PostgreSQL', m.findPostgresBinaries().version))" \
 && mkdir /data && chown node:node /data
USER node
VOLUME /data
EXPOSE 6875 6876
# Longer than a drain (10 s) plus a checkpoint: stop with `docker stop -t 45` when much is unwritten.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["node", "-e", "fetch('http://127.0.0.1:' + (process.env.MILLRACE_HTTP ?? ':6876').split(':').pop() + '/healthz').then((r) => process.exit(r.ok ? 0 : 1), () => process.exit(1))"]
ENTRYPOINT ["node", "dist/main.js"]
CMD ["serve"]
