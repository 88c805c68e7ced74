// A Node.js program that knows nothing of a proxy: `client.js PATH` talks to an echo server, 32 times at once.
"use strict";
const net = require("net");
const path = process.argv[2];
const text = Buffer.alloc(300000, "node");

function one() {
  return new Promise((resolve, reject) => {
    const parts = [];
    const socket = net.connect(path, () => socket.end(text));
    socket.on("data", (part) => parts.push(part));
    socket.on("error", reject);
    socket.on("end", () => (Buffer.concat(parts).equals(text) ? resolve() : reject(new Error("other bytes"))));
  });
}

function missing() {
  return new Promise((resolve, reject) => {
    const socket = net.connect(path + ".missing");
    socket.on("connect", () => reject(new Error("a socket that is not there")));
    socket.on("error", (e) => (e.code === "ENOENT" ? resolve() : reject(e)));
  });
}

Promise.all(Array.from({ length: 32 }, one)).then(missing).then(
  () => console.log("fine"),
  (e) => {
    console.error(e);
    process.exitCode = 1;
  },
);
