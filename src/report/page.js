'use strict';
(function () {
  // One box for values, beside what was pointed at.
  var tip = document.createElement('div');
  tip.className = 'tip';
  tip.hidden = true;
  tip.setAttribute('role', 'status');
  document.body.appendChild(tip);
  function place(x, y) {
    tip.hidden = false;
    var box = tip.getBoundingClientRect();
    var left = x + 14 + box.width > innerWidth ? x - 14 - box.width : x + 14;
    tip.style.left = Math.max(8, Math.min(left, innerWidth - box.width - 8)) + 'px';
    tip.style.top = Math.max(8, Math.min(y - box.height / 2, innerHeight - box.height - 8)) + 'px';
  }
  function hide() { tip.hidden = true; }
  function element(name, text, parent) {
    var made = document.createElement(name);
    made.textContent = text;
    parent.appendChild(made);
    return made;
  }
  // A native tooltip would show the same again.
  function said(node) {
    if (node.title) { node.dataset.tip = node.title; node.removeAttribute('title'); }
    return node.dataset.tip || '';
  }

  // Charts: the values of all lines at the x that is nearest.
  function nearest(points, x) {
    return points.reduce(function (a, b) { return Math.abs(b[0] - x) > Math.abs(a[0] - x) ? a : b; });
  }
  document.querySelectorAll('figure.chart[data-lines]').forEach(function (figure) {
    var lines = JSON.parse(figure.dataset.lines);
    var places = JSON.parse(figure.dataset.places || '[]');
    var xs = [];
    lines.forEach(function (line) { line.points.forEach(function (p) { xs.push(p[0]); }); });
    xs = Array.from(new Set(xs)).sort(function (a, b) { return a - b; });
    if (!xs.length) { return; }
    figure.querySelectorAll('svg.large,svg.small').forEach(function (svg) {
      var view = svg.dataset.view.split(' ').map(Number); // left right top bottom, then x from and to
      var cursor = svg.querySelector('.cursor');
      var at = -1;
      function show(i, y) {
        at = Math.max(0, Math.min(i, xs.length - 1));
        var x = xs[at];
        var u = view[0] + (x - view[4]) / (view[5] - view[4]) * (view[1] - view[0]);
        cursor.setAttribute('d', 'M' + u + ' ' + view[2] + 'V' + view[3]);
        var slack = (view[5] - view[4]) * 0.02;
        var rows = [];
        lines.forEach(function (line) {
          if (!line.points.length) { return; }
          var p = nearest(line.points, x);
          if (Math.abs(p[0] - x) > slack && (line.points[0][0] > x || x > line.points[line.points.length - 1][0])) { return; }
          rows.push([p[1], line]);
        });
        rows.sort(function (a, b) { return b[0] - a[0]; });
        tip.textContent = '';
        element('div', figure.dataset.x + ': ' + (places[x - 1] || Number(x.toPrecision(6)).toLocaleString('en')), tip);
        rows.forEach(function (row) {
          var shown = element('div', '', tip);
          element('i', '', shown).className = row[1].key;
          element('span', row[1].name, shown);
          element('b', row[0].toFixed(4), shown);
        });
        var box = svg.getBoundingClientRect();
        var scale = box.width / svg.viewBox.baseVal.width;
        place(box.left + u * scale, y === undefined ? box.top + box.height / 2 : y);
      }
      function point(event) {
        var box = svg.getBoundingClientRect();
        var u = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
        var x = view[4] + (u - view[0]) / (view[1] - view[0]) * (view[5] - view[4]);
        var i = 0;
        xs.forEach(function (other, j) { if (Math.abs(xs[i] - x) > Math.abs(other - x)) { i = j; } });
        show(i, event.clientY);
      }
      function leave() { hide(); cursor.setAttribute('d', ''); }
      svg.addEventListener('pointermove', point);
      svg.addEventListener('pointerdown', point);
      svg.addEventListener('pointerleave', function (event) { if (event.pointerType === 'mouse') { leave(); } });
      svg.addEventListener('blur', leave);
      svg.addEventListener('keydown', function (event) {
        var to = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - 10, PageDown: at + 10, Home: 0, End: xs.length - 1 }[event.key];
        if (event.key === 'Escape') { leave(); }
        if (to !== undefined) { event.preventDefault(); show(to); }
      });
    });
  });

  // Small pictures that say more.
  document.querySelectorAll('span[title][tabindex]').forEach(function (node) {
    function show() {
      var box = node.getBoundingClientRect();
      tip.textContent = '';
      said(node).split('; ').forEach(function (part) { element('div', part, tip); });
      place(box.right - 20, box.top + box.height / 2);
    }
    if (node.closest('.text')) { return; }
    ['pointerenter', 'focus', 'click'].forEach(function (name) { node.addEventListener(name, show); });
    ['pointerleave', 'blur'].forEach(function (name) { node.addEventListener(name, hide); });
  });

  // A text of tokens: one stop of the tab key, arrows inside; a finger or a click holds a token.
  var text = document.querySelector('.text');
  var detail = document.querySelector('.detail');
  if (text && detail) {
    var held = null;
    var current = null;
    var show = function (token) {
      if (current) { current.classList.remove('on'); }
      current = token;
      detail.textContent = '';
      detail.hidden = !token;
      if (!token) { return; }
      token.classList.add('on');
      var whole = token.dataset.of || token.textContent;
      // A finger has no arrow keys, and some tokens are narrow.
      [['\u2039', 'token before', -1], ['\u203a', 'next token', 1]].forEach(function (step) {
        var button = element('button', step[0], detail);
        button.type = 'button';
        button.setAttribute('aria-label', step[1]);
        button.addEventListener('click', function () {
          var to = step[2] > 0 ? token.nextElementSibling : token.previousElementSibling;
          if (to) { hold(to); }
        });
      });
      element('b', whole.replace(/ /g, '\u00b7').replace(/\n/g, ''), detail);
      element('span', said(token), detail);
    };
    var hold = function (token) {
      if (held) { held.tabIndex = -1; }
      held = token;
      token.tabIndex = 0;
      token.focus();
      show(token);
    };
    var tokenOf = function (event) { return event.target.closest('.t'); };
    text.addEventListener('pointerover', function (event) {
      if (event.pointerType === 'mouse' && tokenOf(event)) { show(tokenOf(event)); }
    });
    text.addEventListener('pointerleave', function () { show(held); });
    text.addEventListener('click', function (event) { if (tokenOf(event)) { hold(tokenOf(event)); } });
    text.addEventListener('focusin', function (event) {
      if (tokenOf(event)) { held = tokenOf(event); show(held); }
    });
    // The token of the next line, up or down, that is nearest.
    var beside = function (token, way) {
      var from = token.getBoundingClientRect();
      var best = null, line = null, distance = Infinity;
      for (var node = token; node; node = way > 0 ? node.nextElementSibling : node.previousElementSibling) {
        var rect = node.getClientRects()[0];
        if (!rect || (rect.top - from.top) * way <= from.height / 2) { continue; }
        if (line === null) { line = rect.top; }
        if (Math.abs(rect.top - line) > from.height / 2) { break; }
        if (distance > Math.abs(rect.left - from.left)) { best = node; distance = Math.abs(rect.left - from.left); }
      }
      return best;
    };
    text.addEventListener('keydown', function (event) {
      var token = tokenOf(event);
      if (event.key === 'Escape') { held = null; show(null); }
      if (!token) { return; }
      var to = {
        ArrowLeft: function () { return token.previousElementSibling; },
        ArrowRight: function () { return token.nextElementSibling; },
        ArrowUp: function () { return beside(token, -1); },
        ArrowDown: function () { return beside(token, 1); },
        Home: function () { return text.firstElementChild; },
        End: function () { return text.lastElementChild; }
      }[event.key];
      if (!to) { return; }
      event.preventDefault();
      if (to()) { hold(to()); }
    });
  }

  // A page that loads itself again keeps the choice of its axis.
  document.querySelectorAll('.choice>input').forEach(function (input) {
    try {
      if (sessionStorage.getItem(input.name) === input.id) { input.checked = true; }
      input.addEventListener('change', function () { sessionStorage.setItem(input.name, input.id); });
    } catch (e) { /* a browser without a store forgets */ }
  });
})();
