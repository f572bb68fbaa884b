import { connect, createServer, type Socket } from "node:net";

import { listen } from "./http.js";

/** A proxy that cuts every connection somewhere in the answer, until it is told to let all pass. */
export class Cutter {
  /** How many connections were cut. */
  cuts = 0;
  /** How many more are to be cut. */
  left: number;
  readonly url: string;

  private constructor(left: number, port: number) {
    this.left = left;
    this.url = `http://127.0.0.1:${port}`;
  }

  /** Cut this many connections to `target`, each within its first `bytesMax` bytes. */
  static async start(target: () => string, left: number, bytesMax: number): Promise<Cutter> {
    const server = createServer((inside) => {
      const { hostname, port } = new URL(target());
      const outside = connect(Number(port), hostname);
      const end = (socket: Socket) => socket.destroy();
      inside.on("error", () => end(outside)).on("close", () => end(outside));
      outside.on("error", () => end(inside)).on("close", () => end(inside));
      inside.pipe(outside);
      let until = cutter.left > 0 ? 1 + Math.floor(Math.random() * bytesMax) : Infinity;
      outside.on("data", (piece) => {
        if (piece.length < until) {
          until -= piece.length;
          inside.write(piece);
          return;
        }
        cutter.cuts++;
        cutter.left--;
        inside.write(piece.subarray(0, until), () => {
          end(inside);
          end(outside);
        });
      });
    });
    const cutter: Cutter = new Cutter(left, await listen(server));
    return cutter;
  }
}
