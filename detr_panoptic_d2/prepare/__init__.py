"""Data sets made ready: conversion and checking."""
