"""The OHIF viewer at /viewer, configured for this server."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import orjson
from flask import Blueprint, Response

from ..access import Permission
from ..errors import NotFound
from .assets import send_asset
from .auth import CSRF_HEADER, current_caller, current_csrf_token, needs
from .service import current_service, server_url

blueprint = Blueprint("viewer", __name__)

#: What the viewer decodes, uncompressed first: frames stored in one of these come as they are, others are decoded here.
DECODED: Final = {
    "application/octet-stream": ("1.2.840.10008.1.2.1",),
    "image/jpeg": tuple(f"1.2.840.10008.1.2.4.{process}" for process in (50, 51, 57, 70)),
    "image/jls": ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"),
    "image/jp2": ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"),
    "image/jphc": tuple(f"1.2.840.10008.1.2.4.{kind}" for kind in (201, 202, 203)),
    "image/dicom-rle": ("1.2.840.10008.1.2.5",),
}
ACCEPT: Final = ",".join(
    f"multipart/related;type={media_type};transfer-syntax={uid}" for media_type, uids in DECODED.items() for uid in uids
)

_HASHED: Final = re.compile(r"(?:.*\.)?[0-9a-f]{16}\.(?:js|wasm|woff2|png|svg)")
_YEAR: Final = 365 * 24 * 3600

#: The build has scripts in its page and compiles WebAssembly; but it may talk to this server only.
CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' blob: data:",
        "media-src 'self' blob: data:",
        "font-src 'self' data:",
        "connect-src 'self' blob: data:",
        "worker-src 'self' blob:",
        "frame-src 'self' blob:",
        "object-src 'self' blob:",
        "base-uri 'self'",
        "frame-ancestors 'self'",
    )
)


def is_installed() -> bool:
    folder = current_service().viewer_folder
    return folder is not None and (folder / "index.html").is_file()


@blueprint.route("/viewer")
@blueprint.route("/viewer/<path:name>")
@needs(Permission.READ, narrows=True)
def viewer_file(name: str = "") -> Response:
    """A file of the build; its page under every address that is none, since the viewer has addresses of its own."""
    folder = current_service().viewer_folder
    if folder is None or not is_installed():
        raise NotFound("No viewer is installed. Run `python -m dicomcloud viewer install`")
    if name == "app-config.js":
        response = Response(_configuration(), mimetype="text/javascript")
        response.headers["Cache-Control"] = "no-store"
    elif "." not in name.rpartition("/")[2] or name == "index.html":
        response = Response(_page(folder, _base()), mimetype="text/html")
        response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        response.headers["Cache-Control"] = "private, no-cache"
    elif name == "init-service-worker.js":  # asks another host, and would keep patients' data in the browser
        response = Response("", mimetype="text/javascript")
    else:
        hashed = _HASHED.fullmatch(name.rpartition("/")[2])
        response = send_asset(folder, name, max_age=_YEAR if hashed else None, compressed=True)
    # Without these, browsers give no SharedArrayBuffer, which volumes need.
    response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
    response.headers["Cross-Origin-Embedder-Policy"] = "require-corp"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    return response


def _base() -> str:
    return urlsplit(server_url()).path.rstrip("/")


def _page(folder: Path, base: str) -> str:
    page = folder / "index.html"
    return _rewritten(page, page.stat().st_mtime_ns, f"{base}/viewer/")


@lru_cache(maxsize=16)
def _rewritten(page: Path, _modified: int, root: str) -> str:
    """The page of a build for `/`, for another path."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r'((?:href|src|content)=")/(?!/)', lambda found: found[1] + root, text)
    return text.replace('window.PUBLIC_URL="/"', f"window.PUBLIC_URL={orjson.dumps(root).decode()}")


def _configuration() -> str:
    """The viewer's configuration: this server's DICOMweb services, on the same origin and under the same prefix."""
    service, caller, base = current_service(), current_caller(), _base()
    token = current_csrf_token() if caller.method in ("session", "share link") else ""
    values = {
        "base": base,
        "root": base + service.root,
        "upload": caller.may(Permission.STORE),
        "list": True,
        "accept": [ACCEPT],
        "header": CSRF_HEADER,
        "token": token,
    }
    return _CONFIGURATION.replace("VALUES", orjson.dumps(values).decode().replace("<", "\\u003c"))


_CONFIGURATION: Final = """// Written by DICOMcloud for this server and this caller.
(() => {
  const server = VALUES;
  const here = window.location.origin;
  if (server.token) { // what changes something has to show that it comes from a page of this server
    const open = XMLHttpRequest.prototype.open;
    XMLHttpRequest.prototype.open = function (method, url, ...rest) {
      open.call(this, method, url, ...rest);
      const own = new URL(url, here).origin === here;
      if (own && !/^(GET|HEAD|OPTIONS)$/i.test(method)) this.setRequestHeader(server.header, server.token);
    };
  }
  const privateImages = { // objects of private SOP classes that have pixels are shown as images, not left out
    id: "dicomcloud.private-images",
    preRegistration({ extensionManager }) {
      const stack = extensionManager.getModuleEntry("@ohif/extension-default.sopClassHandlerModule.stack");
      if (!stack) return;
      const known = new Set(stack.sopClassUids);
      stack.sopClassUids.includes = uid => known.has(uid) || !String(uid).startsWith("1.2.840.10008.");
    },
  };
  window.config = {
    name: "DICOMcloud",
    routerBasename: server.base + "/viewer",
    extensions: [privateImages],
    modes: [],
    customizationService: {},
    showStudyList: server.list,
    maxNumberOfWebWorkers: 3,
    showWarningMessageForCrossOrigin: false,
    showCPUFallbackMessage: false,
    showLoadingIndicator: true,
    strictZSpacingForVolumeViewport: true,
    groupEnabledModesFirst: true,
    maxNumRequests: { interaction: 100, thumbnail: 10, prefetch: 25 },
    investigationalUseDialog: { option: "configure", days: 30 },
    defaultDataSourceName: "dicomcloud",
    dataSources: [
      {
        namespace: "@ohif/extension-default.dataSourcesModule.dicomweb",
        sourceName: "dicomcloud",
        configuration: {
          friendlyName: "DICOMcloud",
          name: "dicomcloud",
          qidoRoot: here + server.root,
          wadoRoot: here + server.root,
          wadoUriRoot: here + server.base + "/wado",
          qidoSupportsIncludeField: true,
          supportsFuzzyMatching: true,
          supportsWildcard: true,
          supportsReject: false,
          dicomUploadEnabled: server.upload,
          imageRendering: "wadors",
          thumbnailRendering: "thumbnail",
          thumbnailRequestStrategy: "fetch",
          enableStudyLazyLoad: true,
          staticWado: false,
          singlepart: "bulkdata,video,pdf",
          bulkDataURI: { enabled: true },
          omitQuotationForMultipartRequest: true,
          acceptHeader: server.accept,
        },
      },
    ],
    httpErrorHandler: error => console.warn(error.status),
  };
})();
"""
