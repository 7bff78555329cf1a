"""Builds the application from its settings. The one file that knows every part."""

from __future__ import annotations

from functools import cache, partial
from typing import Any, Literal

from flask import Flask
from werkzeug.urls import iri_to_uri

from dicomcloud import archive, cli, logs, setting_kinds, settings, web
from dicomcloud.access.policy import open_authentication
from dicomcloud.archive import Archive
from dicomcloud.audit.syslog import SyslogServer
from dicomcloud.deidentify import open_deidentifier
from dicomcloud.delivery import Delivery, kinds_by_target, open_targets
from dicomcloud.dicom.deidentification import Deidentifier
from dicomcloud.dicom.processing import Processor
from dicomcloud.plugins import PluginError, load
from dicomcloud.quarantine import Quarantine
from dicomcloud.server import WHEN_SERVING
from dicomcloud.settings import Settings, SettingsError
from dicomcloud.web.application import Application
from dicomcloud.web.service import Service


def open_archive(configuration: Settings) -> Archive:
    """The archive of these settings. The database may still need `migrate`. Raises SettingsError for a wrong URL."""

    @cache
    def deidentifier(*options: str) -> Deidentifier:  # made, with its key, when it is first needed
        return open_deidentifier(configuration, options or None)

    quarantine = Quarantine(configuration.quarantine_path, configuration.quarantine_bytes)
    processors = [Processor(name, _plugin("processors", name)) for name in configuration.processors]
    try:
        return archive.open_archive(
            configuration.resolved_database_url,
            configuration.resolved_storage_url,
            archive.LocalSpace(
                spool=configuration.spool_path,
                cache=configuration.storage_cache_path,
                cache_bytes=configuration.storage_cache_bytes,
                min_free_bytes=configuration.min_free_bytes,
            ),
            cache_folder=configuration.cache_path,
            cache_bytes=configuration.cache_bytes,
            codec_workers=configuration.resolved_codec_workers,
            codec_timeout=configuration.codec_timeout,
            duplicates=configuration.duplicates,
            max_inflated_bytes=configuration.max_inflated_bytes,
            max_image_pixels=configuration.max_image_pixels,
            min_free_bytes=configuration.min_free_bytes,
            quarantine=quarantine if configuration.quarantine else None,
            deidentify_on_store=deidentifier if configuration.anonymizer_enabled else None,
            # PS3.18 9.5.1.1.5: the Basic Profile with the Clean Pixel Data Option
            deidentify_on_retrieve=partial(deidentifier, "BasicProfile", "CleanPixelData"),
            audit=configuration.audit,
            processors=processors,
            change_feed=configuration.change_feed,
            change_feed_days=configuration.change_feed_days,
            event_targets=kinds_by_target(open_targets(configuration)),
        )
    except ValueError as error:
        raise settings.SettingsError(str(error)) from None


def _plugin(group: Literal["processors"], name: str) -> Any:
    try:
        return load(group, name)
    except PluginError as error:
        raise SettingsError(f"Setting {group}: {error}") from error


def create_app(configuration: Settings | None = None) -> Flask:
    """The WSGI application; without settings, those of the configuration file and the environment.

    Brings the database up to date and finishes what a crash interrupted.
    """
    configuration = configuration or settings.load()
    if configuration.accel_redirect and not configuration.resolved_storage_url.startswith("file://"):
        raise settings.SettingsError("Setting accel_redirect: nginx cannot send files that are not in a folder.")
    logs.set_up(configuration.log_level, configuration.log_format)
    opened = open_archive(configuration)
    opened.patiently(opened.migrate)  # a server process that ends at its start would end the whole server
    opened.patiently(opened.upkeep.recover)
    authentication = opened.patiently(
        lambda: open_authentication(configuration, opened.accounts, noticed=opened.audit.note_login)
    )
    if configuration.audit_syslog:
        host, port = setting_kinds.split_address(configuration.audit_syslog)
        files = (
            configuration.audit_syslog_authority,
            configuration.audit_syslog_certificate,
            configuration.audit_syslog_key,
        )
        opened.audit.forward_to(SyslogServer(host, port, *files))
    delivery = None
    if targets := open_targets(configuration):
        delivery = Delivery(opened.outbox, opened.events, targets, attempts=configuration.event_attempts)
        opened.before_close.append(delivery.stop)
        delivery.start()
    app = Application("dicomcloud", static_folder=None, template_folder=None)
    web.register(
        app,
        Service(
            archive=opened,
            retrieved=delivery.retrieved if delivery and opened.events.wants("retrieved") else None,
            root=configuration.root,
            public_url=iri_to_uri(configuration.public_url),
            trusted_proxies=configuration.trusted_proxies,
            proxy_headers=configuration.proxy_headers,
            presigned_redirects=configuration.presigned_redirects,
            presigned_seconds=configuration.presigned_seconds,
            max_results=configuration.max_results,
            empty_search_status=configuration.empty_search_status,
            max_request_bytes=configuration.max_request_bytes,
            max_parts=configuration.max_parts,
            max_metadata_bytes=configuration.max_metadata_bytes,
            stow_query_attributes=configuration.stow_query_attributes,
            cors_origins=configuration.cors_origins,
            cors_headers=configuration.cors_headers,
            cors_methods=configuration.cors_methods,
            cors_credentials=configuration.cors_credentials,
            frame_ancestors=configuration.frame_ancestors,
            hsts_days=configuration.hsts_days,
            max_url_bytes=configuration.max_url_bytes,
            heavy_requests=configuration.resolved_heavy_requests,
            strict_accept=configuration.strict_accept,
            accel_redirect=configuration.accel_redirect,
            viewer_folder=configuration.viewer_path,
            authentication=authentication,
            only_this_computer=authentication is None and configuration.authentication == "auto",
            forbidden_status=configuration.forbidden_status,
            share_max_hours=configuration.share_max_hours,
            log_requests=configuration.log_requests,
        ),
    )
    if configuration.codec_warm_up:
        app.extensions[WHEN_SERVING] = opened.get_codecs_ready
    return app


def main() -> None:
    """The command line: `python -m dicomcloud …`."""
    cli.main(open_archive, create_app)
