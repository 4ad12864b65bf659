"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const json = (element) => JSON.parse(element.textContent);
  const settings = json($("#settings"));

  // Numbers are written as the Python code writes them.
  const percent = (share) => `${(Math.floor(share * 1000 + 0.5) / 10).toFixed(1)} %`;
  const radius = (value) => `${(Math.floor(value * 1e4 + 0.5) / 1e4).toFixed(4)} ` +
    `(${(Math.floor(value * 2550 + 0.5) / 10).toFixed(1)}/255)`;
  const votesNeeded = (needed, samples, certifiedAll) =>
    certifiedAll ? "nothing abstains" : needed > samples ? `${samples} copies are too few` : `needs ${needed} votes`;
  const percentError = (values) => {
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    if (values.length < 2) return percent(mean);
    const variance = values.reduce((sum, v) => sum + (v - mean) * (v - mean), 0) / (values.length - 1);
    return `${percent(mean).slice(0, -2)} ± ${percent(Math.sqrt(variance / values.length))}`;
  };

  // Pixels are written as 32-bit words, whatever the order of bytes of the machine.
  const word = (colour) => new Uint32Array(new Uint8ClampedArray([...colour, 255]).buffer)[0];
  const IMPORTANT = word(settings.important), UNIMPORTANT = word(settings.unimportant), NOTHING = 0;

  async function inflate(base64, width) {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const buffer = await new Response(stream).arrayBuffer();
    return width === 2 ? new Uint16Array(buffer) : new Uint32Array(buffer);
  }

  class Panel {
    constructor(article) {
      this.article = article;
      this.data = json($("script.data", article));
      this.source = $("script.votes", article);
      this.shown = this.wanted = this.data.own;
      this.visible = false;
      this.votes = null;
    }

    // The position for a τ of the slider (null: the run's own): the largest that this panel has and that is not above.
    position(tau) {
      if (tau === null || !this.source) return this.data.own;
      return Math.max(0, this.data.taus.findLastIndex((value) => value <= tau));
    }

    // Certified shares per level at a position: [[important, unimportant], …].
    shares(at) {
      const [, height, width] = this.data.shape;
      return this.data.areas[at].map(([one, zero]) => [one / (height * width), zero / (height * width)]);
    }

    async show(tau) {
      this.wanted = this.position(tau);
      if (this.wanted === this.shown) return;
      const votes = this.votes ?? await inflate(this.source.textContent, this.data.width);
      this.votes = this.visible ? votes : null;
      if (this.wanted === this.shown) return;
      this.shown = this.wanted;
      this.paint(votes, this.data.thresholds[this.shown]);
      this.write(this.shown);
    }

    // The one decision of the page: a pixel has the candidate's label when its votes reach what its level needs.
    paint(votes, thresholds) {
      const [levels, height, width] = this.data.shape;
      const size = height * width;
      const deepest = new Uint32Array(size);
      const images = $$(".level .map", this.article).map((map) => surface(map, width, height));
      for (let level = 0; level < levels; level++) {
        const pixels = images[level].words, needed = thresholds[level], colour = word(this.data.colours[level]);
        for (let i = 0; i < size; i++) {
          const packed = votes[level * size + i];
          if (packed >>> 1 < needed) { pixels[i] = NOTHING; continue; }
          pixels[i] = packed & 1 ? IMPORTANT : UNIMPORTANT;
          if (packed & 1) deepest[i] = colour;
        }
        images[level].put();
      }
      const overlay = surface($(".overlay .map", this.article), width, height);
      overlay.words.set(deepest);
      overlay.put();
    }

    write(at) {
      const { taus, radii, thresholds, areas, samples, own, shape: [, height, width] } = this.data;
      $(".tau", this.article).textContent = String(taus[at]);
      $(".radius", this.article).textContent = radius(radii[at]);
      this.shares(at).forEach(([one, zero], level) => {
        const figure = $$(".level", this.article)[level];
        $(".certified", figure).textContent = percent(one + zero);
        $(".one", figure).textContent = percent(one);
        $(".zero", figure).textContent = percent(zero);
        const [ones, zeros] = areas[at][level];
        $(".needed", figure).textContent = votesNeeded(thresholds[at][level], samples, ones + zeros === height * width);
        $("rect.important", figure).setAttribute("width", one);
        $("rect.unimportant", figure).setAttribute("x", one);
        $("rect.unimportant", figure).setAttribute("width", zero);
      });
      const moved = $(".moved", this.article);
      moved.hidden = at === own;
      moved.textContent = `The maps above are at τ = ${taus[at]}, R = ${radius(radii[at])}; ` +
        "the sentence below is about the run’s own τ.";
    }
  }

  // A canvas in place of the picture with which the page came; the same one from then on.
  function surface(map, width, height) {
    let canvas = map;
    if (map.tagName !== "CANVAS") {
      canvas = Object.assign(document.createElement("canvas"), { className: "map", width, height });
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", map.alt);
      map.replaceWith(canvas);
    }
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    return { words: new Uint32Array(image.data.buffer), put: () => context.putImageData(image, 0, 0) };
  }

  function summarise(tau) {
    for (const line of $$(".summary tr[data-row]")) {
      const members = panels.filter((panel) => panel.data.row === Number(line.dataset.row));
      if (!members.some((panel) => panel.source)) continue;
      $(".radius", line).textContent = radius(members[0].data.radii[members[0].position(tau)]);
      for (const cell of $$("[data-level]", line)) {
        const values = members.filter((panel) => panel.data.names.includes(cell.dataset.level)).map((panel) => {
          const [one, zero] = panel.shares(panel.position(tau))[panel.data.names.indexOf(cell.dataset.level)];
          return cell.dataset.what === "certified" ? one + zero : one;
        });
        cell.textContent = percentError(values);
      }
    }
  }

  const panels = $$(".panel").map((article) => new Panel(article));
  const live = panels.filter((panel) => panel.source);
  let current = null; // the slider's τ; null while every panel is at its own

  function watch() {
    const observer = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        const panel = live.find((candidate) => candidate.article === entry.target);
        panel.visible = entry.isIntersecting;
        if (panel.visible) panel.show(current); else panel.votes = null;
      }
    }, { rootMargin: "300px" });
    live.forEach((panel) => observer.observe(panel.article));
  }

  async function showAll(tau) {
    for (const panel of live) {
      if (current !== tau) return;
      await panel.show(tau);
    }
  }

  function setUpSlider() {
    const slider = $("#tau"), { taus, own } = settings;
    const sigmas = [...new Map(live.map((panel) => [panel.data.sigma, panel])).values()]
      .sort((a, b) => a.data.sigma - b.data.sigma);
    const describe = () => {
      const tau = taus[slider.value];
      const radii = sigmas.map((panel) => {
        const text = `R = ${radius(panel.data.radii[panel.position(tau)])}`;
        return sigmas.length > 1 ? `σ ${panel.data.sigma}: ${text}` : text;
      }).join(" · ");
      $("#tau-value").textContent = String(tau);
      $("#radii").textContent = radii;
      slider.setAttribute("aria-valuetext", `tau ${tau}, ${radii}`);
    };
    const move = (tau) => {
      current = tau;
      describe();
      summarise(tau);
      live.filter((panel) => panel.visible).forEach((panel) => panel.show(tau));
    };
    slider.max = taus.length - 1;
    slider.value = taus.indexOf(own);
    describe();
    slider.addEventListener("input", () => move(taus[slider.value]));
    slider.addEventListener("change", () => showAll(current));
    $("#reset").addEventListener("click", () => {
      slider.value = taus.indexOf(own);
      move(null);
      showAll(null);
    });
    $("#slider").hidden = false;
    watch();
  }

  function setUpFilter() {
    const select = $("#row");
    select.addEventListener("change", () => {
      for (const panel of panels) panel.article.hidden = select.value !== "" && panel.data.row !== Number(select.value);
    });
    $("#filter").hidden = false;
  }

  // Votes are little-endian, as are the machines that browsers run on; elsewhere the page stays as it came.
  const littleEndian = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;
  if (live.length && littleEndian && "DecompressionStream" in window) setUpSlider();
  if ($("#filter")) setUpFilter();
})();
