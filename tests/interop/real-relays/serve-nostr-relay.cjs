// @nostr-relay/core over its SQLite store, on the port that is the first argument. Run where its
// packages are installed.
const { createRequire } = require("node:module");
const { join } = require("node:path");
const at = createRequire(join(process.argv[3], "package.json"));
const { WebSocketServer } = at("ws");
const { NostrRelay } = at("@nostr-relay/core");
const { EventRepositorySqlite } = at("@nostr-relay/event-repository-sqlite");

async function main() {
  const repository = new EventRepositorySqlite(":memory:");
  await repository.init?.();
  const relay = new NostrRelay(repository);
  const server = new WebSocketServer({ host: "127.0.0.1", port: Number(process.argv[2]) });
  server.on("connection", (socket) => {
    relay.handleConnection(socket);
    socket.on("message", (data) => {
      relay.handleMessage(socket, JSON.parse(data.toString())).catch(() => {});
    });
    socket.on("close", () => relay.handleDisconnect(socket));
    socket.on("error", () => socket.close());
  });
}

main();
