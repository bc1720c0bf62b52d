// Seconds of work on a question. The clock pauses after two minutes without input, and while the page is hidden; that
// time is counted separately, as idle.

const PATIENCE = 120;

let last = 0, seconds = 0, idle = 0, hidden = false;

const now = () => performance.now() / 1000;

function pass() {
  const gap = now() - last;
  const worked = hidden ? 0 : Math.min(gap, PATIENCE);
  seconds += worked;
  idle += gap - worked;
  last += gap;
}

export function restart() {
  last = now();
  seconds = idle = 0;
  hidden = document.hidden;
}

export function read() {
  pass();
  return { seconds: Math.round(seconds * 100) / 100, idle: Math.round(idle * 100) / 100 };
}

export function watch() {
  for (const kind of ["keydown", "pointermove", "pointerdown", "wheel", "touchmove"]) {
    addEventListener(kind, pass, { passive: true, capture: true });
  }
  document.addEventListener("visibilitychange", () => {
    pass();
    hidden = document.hidden;
  });
}
