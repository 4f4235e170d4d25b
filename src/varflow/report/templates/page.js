"use strict";
(() => {
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const told = (box) => JSON.parse(box.querySelector("script[type='application/json']").textContent);
  const element = (parent, tag, text) => {
    const made = document.createElement(tag);
    made.textContent = text;
    parent.append(made);
    return made;
  };

  // Points: under the pointer, a finger or the arrow keys each tells what it is of, in all panels at once.
  function points(box) {
    const held = told(box), tip = box.querySelector(".tip"), words = tip.querySelector(".words");
    const sheet = box.querySelector("img.sheet"), canvas = tip.querySelector("canvas");
    const said = box.querySelector("[aria-live]");
    const panels = [...box.querySelectorAll("svg")].map((svg) => {
      const marks = [];
      for (const dot of svg.querySelectorAll("[data-i]"))
        marks[+dot.dataset.i] = { x: +dot.getAttribute("cx"), y: +dot.getAttribute("cy") };
      return { svg, marks, ring: svg.querySelector(".ring"), side: svg.viewBox.baseVal.width };
    });
    let only = null, at = null, pinned = false;
    const counts = (i) => only === null || held.labels[i] === only;

    function fill(i) {
      words.replaceChildren();
      if (held.labels) element(words, "b", held.classes[held.labels[i]]);
      element(words, held.labels ? "span" : "b", held.names[i]);
      if (held.rows.length) {
        const table = element(words, "table", ""), most = 12;
        held.columns.slice(0, most).forEach((name, k) => {
          const row = table.insertRow();
          element(row, "th", name);
          element(row, "td", held.rows[i][k]);
        });
        if (held.columns.length > most) element(words, "span", `and ${held.columns.length - most} more columns`);
      }
      if (!held.sheet) return;
      const { across, width, height } = held.sheet, scale = Math.max(1, Math.round(96 / Math.max(width, height)));
      canvas.width = width * scale;
      canvas.height = height * scale;
      const pen = canvas.getContext("2d");
      pen.imageSmoothingEnabled = false;
      pen.drawImage(sheet, (i % across) * width, Math.floor(i / across) * height, width, height,
        0, 0, canvas.width, canvas.height);
    }

    function show(i, panel) {
      at = i;
      box.dataset.shown = i;
      fill(i);
      for (const one of panels) {
        const mark = one.marks[i];
        one.ring.setAttribute("visibility", mark ? "visible" : "hidden");
        if (mark) {
          one.ring.setAttribute("cx", mark.x);
          one.ring.setAttribute("cy", mark.y);
        }
      }
      tip.hidden = false;
      const frame = panel.svg.getBoundingClientRect(), home = box.getBoundingClientRect();
      const scale = frame.width / panel.side;
      const x = frame.left - home.left + panel.marks[i].x * scale, y = frame.top - home.top + panel.marks[i].y * scale;
      const left = x + 14 + tip.offsetWidth > home.width ? x - 14 - tip.offsetWidth : x + 14;
      tip.style.left = `${Math.max(0, Math.min(left, home.width - tip.offsetWidth))}px`;
      // The tip of a point near the upper edge stays below the top of the window.
      tip.style.top = `${Math.max(y - tip.offsetHeight / 2, 8 - home.top)}px`;
      const class_of = held.labels ? `${held.classes[held.labels[i]]}, ` : "";
      const cells = held.rows.length ? `: ${held.columns.map((name, k) => `${name} ${held.rows[i][k]}`).join(", ")}` : "";
      said.textContent = `${class_of}${held.names[i]}${cells}`;
    }

    function hide() {
      at = null;
      pinned = false;
      delete box.dataset.shown;
      tip.hidden = true;
      for (const one of panels) one.ring.setAttribute("visibility", "hidden");
    }

    function near(panel, event) {
      const frame = panel.svg.getBoundingClientRect(), scale = frame.width / panel.side;
      const x = (event.clientX - frame.left) / scale, y = (event.clientY - frame.top) / scale;
      let best = null, least = (event.pointerType === "touch" ? 30 : 18) / scale;
      panel.marks.forEach((mark, i) => {
        const away = Math.hypot(mark.x - x, mark.y - y);
        if (away < least && counts(i)) [best, least] = [i, away];
      });
      return best;
    }

    for (const panel of panels) {
      panel.svg.addEventListener("pointermove", (event) => {
        if (pinned || event.pointerType === "touch") return;
        const found = near(panel, event);
        if (found === null) hide();
        else if (found !== at) show(found, panel);
      });
      panel.svg.addEventListener("pointerdown", (event) => {
        const found = near(panel, event);
        if (found === null) return hide();
        show(found, panel);
        pinned = true;
      });
      panel.svg.addEventListener("pointerleave", () => pinned || hide());
    }
    const plot = box.querySelector(".panels"), last = panels[panels.length - 1];
    plot.addEventListener("focus", () => {
      const first = last.marks.findIndex((mark, i) => mark && counts(i));
      if (at === null && plot.matches(":focus-visible") && first >= 0) show(first, last);
    });
    plot.addEventListener("blur", hide);
    plot.addEventListener("keydown", (event) => {
      const way = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (event.key === "Escape") hide();
      if (!way) return;
      event.preventDefault();
      const from = last.marks[at] || { x: last.side / 2, y: last.side / 2 };
      let best = null, least = Infinity;
      last.marks.forEach((mark, i) => {
        const x = mark.x - from.x, y = mark.y - from.y, ahead = x * way[0] + y * way[1];
        const away = ahead + 2 * Math.abs(x * way[1] + y * way[0]);
        if (i !== at && ahead > 0 && away < least && counts(i)) [best, least] = [i, away];
      });
      if (best !== null) show(best, last);
      pinned = true;
    });
    for (const button of box.querySelectorAll(".legend button"))
      button.addEventListener("click", () => {
        const chosen = +button.dataset.k;
        only = only === chosen ? null : chosen;
        hide();
        for (const other of box.querySelectorAll(".legend button"))
          other.setAttribute("aria-pressed", String(+other.dataset.k === only));
        for (const group of box.querySelectorAll("g[data-k]"))
          group.classList.toggle("dim", only !== null && +group.dataset.k !== only);
      });
    box.classList.add("alive");
  }

  // Films: draws that move from frame to frame, with a button to pause and a slider to go to any step.
  function film(box) {
    const held = told(box), slider = box.querySelector("input"), button = box.querySelector("button");
    const out = box.querySelector("output"), frames = +slider.max + 1;
    const reels = [...box.querySelectorAll("canvas")].map((canvas, k) => ({
      canvas, pen: canvas.getContext("2d"), ...held[k],
      places: Uint8Array.from(atob(held[k].places), (letter) => letter.charCodeAt(0)),
    }));
    const ink = getComputedStyle(box).getPropertyValue("--draws"), rate = 5, hold = 2.5;
    let at = frames - 1, playing = false, before = null;

    function draw() {
      const frame = Math.min(Math.floor(at), frames - 1), next = Math.min(frame + 1, frames - 1);
      const share = Math.max(0, Math.min(at - frame, 1));
      for (const { canvas, pen, places, draws } of reels) {
        const side = canvas.width, unit = side / 254, dot = side / 110;
        pen.clearRect(0, 0, side, side);
        pen.fillStyle = ink;
        pen.globalAlpha = 0.75;
        for (let i = 0; i < draws; i++) {
          const a = (frame * draws + i) * 2, b = (next * draws + i) * 2;
          if (!places[a] || !places[b]) continue;
          const x = places[a] + (places[b] - places[a]) * share, y = places[a + 1] + (places[b + 1] - places[a + 1]) * share;
          pen.fillRect((x - 1) * unit - dot / 2, (y - 1) * unit - dot / 2, dot, dot);
        }
      }
      slider.value = frame;
      const step = reels[0].steps[frame].toLocaleString("en");
      out.textContent = `step ${step}`;
      slider.setAttribute("aria-valuetext", `step ${step}`);
    }

    function tick(now) {
      if (!playing) return;
      at += before === null ? 0 : Math.min(now - before, 100) / 1000 * rate;
      before = now;
      // At the end it rests, and begins again.
      if (at > frames - 1 + hold * rate) at = 0;
      draw();
      requestAnimationFrame(tick);
    }

    function play(on) {
      playing = on;
      before = null;
      button.textContent = on ? "Pause" : "Play";
      if (!on) return;
      if (at >= frames - 1) at = 0;
      requestAnimationFrame(tick);
    }

    button.addEventListener("click", () => play(!playing));
    slider.addEventListener("input", () => {
      play(false);
      at = +slider.value;
      draw();
    });
    calm.addEventListener("change", () => calm.matches && play(false));
    box.classList.add("alive");
    draw();
    play(!calm.matches);
  }

  // Pictures that the screen made smaller can be seen in full, and moved along.
  function zoom(figure) {
    const image = figure.querySelector("img"), frame = figure.querySelector(".frame");
    const turn = () => {
      const full = frame.classList.toggle("full");
      frame.setAttribute("aria-expanded", String(full));
    };
    const check = () => {
      const smaller = +image.getAttribute("width") > 1.15 * figure.clientWidth;
      frame.classList.toggle("small", smaller);
      if (smaller) {
        frame.tabIndex = 0;
        frame.setAttribute("role", "button");
        frame.setAttribute("aria-label", `${image.alt}: in full size`);
        frame.setAttribute("aria-expanded", String(frame.classList.contains("full")));
      } else {
        frame.classList.remove("full");
        for (const name of ["tabindex", "role", "aria-label", "aria-expanded"]) frame.removeAttribute(name);
      }
    };
    frame.addEventListener("click", () => frame.classList.contains("small") && turn());
    frame.addEventListener("keydown", (event) => {
      if (frame.classList.contains("small") && ["Enter", " "].includes(event.key)) {
        event.preventDefault();
        turn();
      }
    });
    addEventListener("resize", check);
    check();
  }

  // Paper shows what is folded away on the screen.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of opened) one.open = false;
  });

  for (const box of document.querySelectorAll(".points")) points(box);
  for (const box of document.querySelectorAll(".film")) film(box);
  for (const figure of document.querySelectorAll("figure.picture")) zoom(figure);
})();
