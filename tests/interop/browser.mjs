// What these clients expect to find as in a browser, and older Node versions lack.
import { webcrypto } from "node:crypto";
import WebSocket from "ws";

globalThis.WebSocket = WebSocket;
globalThis.crypto ??= webcrypto;
