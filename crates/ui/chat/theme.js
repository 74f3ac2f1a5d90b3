// Chooses light or dark before the page is painted. The choice is kept; without one, the system's counts.
(() => {
  let kept = null;
  try {
    kept = localStorage.getItem("dunlin.theme");
  } catch {
    // Storage may be forbidden: then the system's choice stays.
  }
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
})();
